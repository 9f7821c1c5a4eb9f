// What stands between two convolutions, in as few passes over memory as it needs. Images are (rows, C), rows = N * H * W:
//
//     normalise_add_relu       y = relu((z - mean) * scale + shift + residual), the relu or not      reads 1 or 2, writes 1
//     gate_and_sums            g = dy where a relu was open, else 0; sum(g), sum(g * (z - mean))    reads 2 or 3, writes 1
//     normalisation_gradient   dz = from_dy * g + from_x * (z - mean) + constant                    reads 2, writes 1
//     add_bias_relu            y = relu(y + bias + residual)                                        reads 1 or 2, writes 1
//
// (in images of the size of y). Element by element: a thread an element, in strides of the grid. The sums are added up by
// blocks as those of norm.cu are, in two levels and without atomics: the same bits in every run.
#include "common.cuh"

template <typename T>
__device__ T rectify(T value) {
    return value < T(0) ? T(0) : value;  // a NaN stays one
}

template <typename T>
__global__ void normalise_add_relu(const T* z, const T* mean, const T* scale, const T* shift, const T* residual, T* y,
                                   long long count, int C, bool relu) {
    FOR_EACH(i, count) {
        const int c = (int)(i % C);
        T value = (z[i] - mean[c]) * scale[c] + shift[c];
        if (residual) value += residual[i];
        y[i] = relu ? rectify(value) : value;
    }
}

// In place, result being y, or not. bias and residual may be null.
template <typename T>
__global__ void add_bias_relu(const T* y, const T* bias, const T* residual, T* result, long long count, int C,
                              bool relu) {
    FOR_EACH(i, count) {
        T value = y[i];
        if (bias) value += bias[i % C];
        if (residual) value += residual[i];
        result[i] = relu ? rectify(value) : value;
    }
}

template <typename T>
__global__ void normalisation_gradient(const T* g, const T* z, const T* mean, const T* from_dy, const T* from_x,
                                       const T* constant, T* dz, long long count, int C) {
    FOR_EACH(i, count) {
        const int c = (int)(i % C);
        dz[i] = from_dy[c] * g[i] + (from_x[c] * (z[i] - mean[c]) + constant[c]);
    }
}

// The factors of normalisation_gradient and the gradients of weight and bias, in double as they are few: a thread a channel.
// inverse_count: 1 / (N * H * W), or 0 where the statistics are constants (evaluation).
template <typename T>
__global__ void batchnorm_coefficients(const T* sum_g, const T* sum_gx, const T* var, const T* weight, double eps,
                                       double inverse_count, T* from_dy, T* from_x, T* constant, T* dweight, T* dbias, int C) {
    for (int c = blockIdx.x * blockDim.x + threadIdx.x; c < C; c += gridDim.x * blockDim.x) {
        const double inverse_std = 1 / sqrt((double)var[c] + eps), scale = weight[c] * inverse_std;
        const double slope = sum_gx[c] * inverse_std;
        from_dy[c] = (T)scale;
        from_x[c] = (T)(-scale * inverse_std * slope * inverse_count);
        constant[c] = (T)(-scale * (double)sum_g[c] * inverse_count);
        dweight[c] = (T)slope;
        dbias[c] = sum_g[c];
    }
}

// Open where y > 0, y a relu's result; where y is null, open where (z - mean) * scale + shift > 0. g may be dy.
// sums, sums_x: (C, parts), each block's own; finish_sums of norm.cu adds them up.
template <typename T>
__global__ void gate_and_sums(const T* dy, const T* y, const T* z, const T* mean, const T* scale, const T* shift, T* g, T* sums,
                              T* sums_x, long long rows, long long C, int width, long long span) {
    __shared__ T shared[BLOCK];
    Columns own(rows, width, span);
    T sum = 0, sum_x = 0;
    if (own.c < C)
        for (long long row = own.row; row < own.last; row += own.step) {
            const long long i = row * C + own.c;
            const T gap = z[i] - mean[own.c];
            const bool open = y ? y[i] > T(0) : gap * scale[own.c] + shift[own.c] > T(0);
            const T value = open ? dy[i] : T(0);
            g[i] = value;
            sum += value;
            sum_x += value * gap;
        }
    sum = column_sum(sum, shared, width);
    sum_x = column_sum(sum_x, shared, width);
    if (threadIdx.x < width && own.c < C) {
        sums[own.c * gridDim.y + blockIdx.y] = sum;
        sums_x[own.c * gridDim.y + blockIdx.y] = sum_x;
    }
}
