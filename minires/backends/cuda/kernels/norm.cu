// Batch normalisation: y = weight * x_hat + bias, x_hat = (x - mean) / sqrt(var + eps), statistics over the rows of (rows, C),
// rows = N * H * W; and layer normalisation, the same over the channels of a row.
//
//     moments             each channel's mean and sum of squared differences, a block's rows     reads 1 image
//     finish_moments      mean and var from the blocks' parts                                    a few bytes
//     normalise           y                                                                      reads 1, writes 1
//     gradient_sums       sum(dy) and sum(dy * (x - mean)), a block's rows                       reads 1 or 2
//     finish_sums         both from the blocks' parts                                            a few bytes
//     normalise_backward  dx = weight * s * (dy - dbias / m - x_hat * dweight / m)               reads 2, writes 1
//
// s = 1 / sqrt(var + eps). Two levels: a block adds up its span of rows for up to 32 channels (common.cuh: Columns) and writes
// one part a channel, a warp a channel adds the parts. No atomics: the same bits in every run. The parts are merged as means
// and squared differences from them, for E[x^2] - E[x]^2 would lose every digit of a variance far from zero.
#include "common.cuh"

// count values of mean `mean`, whose squared differences from it add up to `squares`.
template <typename T>
struct Moments {
    T count, mean, squares;
};

// Chan, Golub & LeVeque 1979.
template <typename T>
__device__ Moments<T> merge(Moments<T> a, Moments<T> b) {
    T count = a.count + b.count;
    if (!(count > T(0))) return a;
    T difference = b.mean - a.mean, share = b.count / count;
    return {count, a.mean + difference * share, a.squares + b.squares + difference * difference * a.count * share};
}

template <typename T>
__global__ void moments(const T* x, T* means, T* squares, long long rows, long long C, int width, long long span) {
    __shared__ T counts[BLOCK], shared_means[BLOCK], shared_squares[BLOCK];
    Columns own(rows, width, span);
    Moments<T> found = {0, 0, 0};
    if (own.c < C && own.row < own.last) {
        // Differences from the thread's own first value: of the size of the spread, wherever the mean is.
        T first = x[own.row * C + own.c], sum = 0, square = 0;
        for (long long row = own.row; row < own.last; row += own.step) {
            T difference = x[row * C + own.c] - first;
            sum += difference;
            square += difference * difference;
            found.count += 1;
        }
        found.mean = first + sum / found.count;
        found.squares = square - sum * sum / found.count;
    }
    counts[threadIdx.x] = found.count;
    shared_means[threadIdx.x] = found.mean;
    shared_squares[threadIdx.x] = found.squares;
    __syncthreads();
    for (int half = BLOCK / 2; half >= width; half /= 2) {
        if (threadIdx.x < half) {
            int other = threadIdx.x + half;
            found = merge(found, {counts[other], shared_means[other], shared_squares[other]});
            counts[threadIdx.x] = found.count;
            shared_means[threadIdx.x] = found.mean;
            shared_squares[threadIdx.x] = found.squares;
        }
        __syncthreads();
    }
    if (threadIdx.x < width && own.c < C) {
        means[own.c * gridDim.y + blockIdx.y] = found.mean;
        squares[own.c * gridDim.y + blockIdx.y] = found.squares;
    }
}

// means, squares: (C, parts) of `span` rows each (the last of fewer). A warp a channel.
template <typename T>
__global__ void finish_moments(const T* means, const T* squares, T* mean, T* var, long long rows, long long C, int parts,
                               long long span) {
    long long warp = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / WARP, warps = (long long)gridDim.x * blockDim.x / WARP;
    for (long long c = warp; c < C; c += warps) {
        Moments<double> found = {0, 0, 0};
        for (int part = threadIdx.x % WARP; part < parts; part += WARP) {
            long long count = rows - part * span < span ? rows - part * span : span;
            found = merge(found, {(double)count, (double)means[c * parts + part], (double)squares[c * parts + part]});
        }
        for (int by = WARP / 2; by; by /= 2) {
            if (by >= parts) continue;  // only empty lanes are so far apart
            double count = __shfl_down_sync(ALL_LANES, found.count, by);
            double other_mean = __shfl_down_sync(ALL_LANES, found.mean, by);
            double other_squares = __shfl_down_sync(ALL_LANES, found.squares, by);
            if (threadIdx.x % WARP < by) found = merge(found, {count, other_mean, other_squares});
        }
        if (threadIdx.x % WARP == 0) {
            mean[c] = (T)found.mean;
            var[c] = (T)(found.squares / rows);
        }
    }
}

template <typename T>
__global__ void normalise(const T* x, const T* mean, const T* var, const T* weight, const T* bias, T* y, T eps, long long rows,
                          long long C, int width, long long span) {
    Columns own(rows, width, span);
    if (own.c >= C) return;
    T centre = mean[own.c], deviation = sqrt(var[own.c] + eps), scale = weight[own.c], shift = bias[own.c];
    for (long long row = own.row; row < own.last; row += own.step)
        y[row * C + own.c] = scale * ((x[row * C + own.c] - centre) / deviation) + shift;
}

// sums_x null: only sum(dy), and x and mean are not read.
template <typename T>
__global__ void gradient_sums(const T* dy, const T* x, const T* mean, T* sums, T* sums_x, long long rows, long long C, int width,
                              long long span) {
    __shared__ T shared[BLOCK];
    Columns own(rows, width, span);
    T sum = 0, sum_x = 0;
    if (own.c < C) {
        T centre = sums_x ? mean[own.c] : T(0);
        for (long long row = own.row; row < own.last; row += own.step) {
            T g = dy[row * C + own.c];
            sum += g;
            if (sums_x) sum_x += g * (x[row * C + own.c] - centre);
        }
    }
    sum = column_sum(sum, shared, width);
    if (sums_x) sum_x = column_sum(sum_x, shared, width);
    if (threadIdx.x < width && own.c < C) {
        sums[own.c * gridDim.y + blockIdx.y] = sum;
        if (sums_x) sums_x[own.c * gridDim.y + blockIdx.y] = sum_x;
    }
}

// sums, sums_x: (C, parts). var null: total_x is the sum itself, else the sum / sqrt(var + eps). A warp a channel.
template <typename T>
__global__ void finish_sums(const T* sums, const T* sums_x, const T* var, T* total, T* total_x, T eps, long long C, int parts) {
    long long warp = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / WARP, warps = (long long)gridDim.x * blockDim.x / WARP;
    for (long long c = warp; c < C; c += warps) {
        T sum = 0, sum_x = 0;
        for (int part = threadIdx.x % WARP; part < parts; part += WARP) {
            sum += sums[c * parts + part];
            if (sums_x) sum_x += sums_x[c * parts + part];
        }
        if (parts > 1) {
            sum = warp_sum(sum);
            if (sums_x) sum_x = warp_sum(sum_x);
        }
        if (threadIdx.x % WARP == 0) {
            total[c] = sum;
            if (sums_x) total_x[c] = var ? sum_x / sqrt(var[c] + eps) : sum_x;
        }
    }
}

// batch_statistics false: mean and var are constants, and dx is dy scaled.
template <typename T>
__global__ void normalise_backward(const T* dy, const T* x, const T* mean, const T* var, const T* weight, const T* dweight,
                                   const T* dbias, T* dx, T eps, bool batch_statistics, long long rows, long long C, int width,
                                   long long span) {
    Columns own(rows, width, span);
    if (own.c >= C) return;
    T inv_std = T(1) / sqrt(var[own.c] + eps), scale = weight[own.c] * inv_std, centre = mean[own.c];
    T of_bias = dbias[own.c] / rows, of_weight = dweight[own.c] / rows;
    for (long long row = own.row; row < own.last; row += own.step) {
        long long i = row * C + own.c;
        dx[i] = batch_statistics ? scale * (dy[i] - of_bias - (x[i] - centre) * inv_std * of_weight) : dy[i] * scale;
    }
}

// --- layer normalisation: a warp a row, in strides of the grid; reads x three times (twice from cache), writes y ---

template <typename T>
__global__ void layernorm_forward(const T* x, const T* weight, const T* bias, T* y, T* mean, T* var, T eps, long long rows,
                                  long long C) {
    long long warp = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / WARP, warps = (long long)gridDim.x * blockDim.x / WARP;
    int lane = threadIdx.x % WARP;
    for (long long row = warp; row < rows; row += warps) {
        const T* own = x + row * C;
        T sum = 0, squares = 0;
        for (long long c = lane; c < C; c += WARP) sum += own[c];
        T centre = warp_sum(sum) / C;
        for (long long c = lane; c < C; c += WARP) squares += (own[c] - centre) * (own[c] - centre);
        T spread = warp_sum(squares) / C, deviation = sqrt(spread + eps);
        for (long long c = lane; c < C; c += WARP) y[row * C + c] = weight[c] * ((own[c] - centre) / deviation) + bias[c];
        if (lane == 0) {
            mean[row] = centre;
            var[row] = spread;
        }
    }
}

// dx = s * (g - mean(g) - x_hat * mean(g * x_hat)), g = weight * dy; reads dy and x twice (once from cache), writes dx.
template <typename T>
__global__ void layernorm_backward(const T* dy, const T* x, const T* mean, const T* var, const T* weight, T* dx, T eps,
                                   long long rows, long long C) {
    long long warp = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / WARP, warps = (long long)gridDim.x * blockDim.x / WARP;
    int lane = threadIdx.x % WARP;
    for (long long row = warp; row < rows; row += warps) {
        T centre = mean[row], inv_std = T(1) / sqrt(var[row] + eps), sum = 0, sum_x = 0;
        for (long long c = lane; c < C; c += WARP) {
            T g = weight[c] * dy[row * C + c];
            sum += g;
            sum_x += g * (x[row * C + c] - centre) * inv_std;
        }
        sum = warp_sum(sum) / C;
        sum_x = warp_sum(sum_x) / C;
        for (long long c = lane; c < C; c += WARP) {
            T x_hat = (x[row * C + c] - centre) * inv_std;
            dx[row * C + c] = inv_std * (weight[c] * dy[row * C + c] - sum - x_hat * sum_x);
        }
    }
}

// sum(dy) and sum(dy * x_hat) over a block's rows, whose statistics are the rows' own; finish_sums adds the parts.
template <typename T>
__global__ void layernorm_sums(const T* dy, const T* x, const T* mean, const T* var, T* sums, T* sums_x, T eps, long long rows,
                               long long C, int width, long long span) {
    __shared__ T shared[BLOCK];
    Columns own(rows, width, span);
    T sum = 0, sum_x = 0;
    if (own.c < C) {
        for (long long row = own.row; row < own.last; row += own.step) {
            T g = dy[row * C + own.c];
            sum += g;
            sum_x += g * (x[row * C + own.c] - mean[row]) / sqrt(var[row] + eps);
        }
    }
    sum = column_sum(sum, shared, width);
    sum_x = column_sum(sum_x, shared, width);
    if (threadIdx.x < width && own.c < C) {
        sums[own.c * gridDim.y + blockIdx.y] = sum;
        sums_x[own.c * gridDim.y + blockIdx.y] = sum_x;
    }
}

// scale = weight / sqrt(var + eps), a thread a channel.
template <typename T>
__global__ void normalisation_scale(const T* weight, const T* var, T* scale, T eps, long long C) {
    FOR_EACH(c, C) { scale[c] = weight[c] / sqrt(var[c] + eps); }
}

// running = keep * running + take * batch * factor, in place, a thread a channel.
template <typename T>
__global__ void follow(T* running, const T* batch, T keep, T take, T factor, long long C) {
    FOR_EACH(c, C) { running[c] = keep * running[c] + take * batch[c] * factor; }
}
