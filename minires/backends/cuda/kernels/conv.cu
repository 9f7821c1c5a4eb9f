// Convolution, channels last, and its two gradients. With h = oh * SH - PH + i * DH, w = ow * SW - PW + j * DW:
//
//     y[n, oh, ow, o]      = sum over i, j, c of   a[n, h, w, c] * weight[i, j, c, o]        a is 0 outside the image
//     dx[n, h, w, c]       = sum over i, j, o of  dy[n, oh, ow, o] * weight[i, j, c, o]      (i, j, oh, ow) that meet (h, w)
//     dweight[i, j, c, o]  = sum over n, oh, ow of a[n, h, w, c] * dy[n, oh, ow, o]
//
// a is x, or where mean is not null the normalised image a = relu((x - mean) * scale + shift), formed where it is read and
// never stored.
//
// Two ways. Narrow images: implicit matrix products (conv2d_forward, conv2d_input_gradient, conv2d_weight_gradient), which
// gather tiles of the im2col matrix straight into shared memory. Wide ones: im2col and col2im around cuBLAS.
//
// Threads of the implicit products: a block computes BM rows (pixels; of dweight its rows (i, j, c)) by BN columns with
// BM / 4 * BN / 4 threads; a thread keeps 4 x 4 sums in registers, its rows BM / 4 apart, its columns BN / 4.
// Bytes from memory: the source once (its KH * KW readings meet in the caches), the weight once a block (it stays in L2), the
// result once. im2col moves 1 + KH * KW times x, and the product reads that matrix again: hence the first way.
#include "common.cuh"

#define GEOMETRY int H, int W, int C, int OH, int OW, int O, int KH, int KW, int SH, int SW, int PH, int PW, int DH, int DW

const int DEPTH = 8;             // of the slices that are multiplied at a time
const int PAD = 4;               // with it the DEPTH lanes that store a row of a tile meet different banks
const int OUTSIDE = -(1 << 30);  // a row or column in no image, even after a tap is added

__device__ inline bool within(int index, int size) { return index >= 0 && index < size; }

template <typename T>
__device__ T activation(const T* x, long long index, int c, const T* mean, const T* scale, const T* shift) {
    const T value = x[index];
    if (!mean) return value;
    const T normalised = (value - mean[c]) * scale[c] + shift[c];
    return normalised < T(0) ? T(0) : normalised;  // a NaN stays one
}

// total += left^T @ right for one slice in shared memory.
template <typename T, int BM, int BN>
__device__ void multiply(const T (&left)[DEPTH][BM + PAD], const T (&right)[DEPTH][BN + PAD], T (&total)[4][4]) {
    const int row = threadIdx.x / (BN / 4), column = threadIdx.x % (BN / 4);
    for (int d = 0; d < DEPTH; d++) {
        T l[4], r[4];
        for (int k = 0; k < 4; k++) {
            l[k] = left[d][row + k * (BM / 4)];
            r[k] = right[d][column + k * (BN / 4)];
        }
        for (int p = 0; p < 4; p++)
            for (int q = 0; q < 4; q++) total[p][q] += l[p] * r[q];
    }
}

// sums[0][column] = the sum over the block's rows; BM / 4 is a power of two. All threads of the block call it.
template <int BM, int BN, typename T>
__device__ void sum_columns(const T (&values)[4][4], T (&sums)[BM / 4][BN]) {
    const int row = threadIdx.x / (BN / 4), column = threadIdx.x % (BN / 4);
    __syncthreads();  // whoever still reads an earlier result
    for (int q = 0; q < 4; q++)
        sums[row][column + q * (BN / 4)] = values[0][q] + values[1][q] + values[2][q] + values[3][q];
    __syncthreads();
    for (int half = BM / 8; half > 0; half /= 2) {
        if (row < half)
            for (int q = 0; q < 4; q++) sums[row][column + q * (BN / 4)] += sums[row + half][column + q * (BN / 4)];
        __syncthreads();
    }
}

// What sum_columns left goes to parts, (columns, tiles): a thread a column. BN is at most the number of threads.
template <typename T, int ROWS, int BN>
__device__ void store_part(const T (&sums)[ROWS][BN], T* parts, long long tile, long long tiles, int first_column, int columns) {
    const int column = first_column + threadIdx.x;
    if (threadIdx.x < BN && column < columns) parts[column * tiles + tile] = sums[0][threadIdx.x];
}

// Grid: (tiles of the N * OH * OW pixels, tiles of O). Where means is not null also the parts of
// norm.cu's moments, a tile's pixels each: means, squares: (O, tiles), each channel's mean and squared differences from it.
template <typename T, int BM, int BN>
__global__ void conv2d_forward(const T* x, const T* mean, const T* scale, const T* shift, const T* weight, T* y, T* means,
                               T* squares, int N, GEOMETRY) {
    __shared__ T left[DEPTH][BM + PAD], right[DEPTH][BN + PAD], sums[BM / 4][BN];
    __shared__ long long image[BM];
    __shared__ int top[BM], side[BM];
    const long long rows = (long long)N * OH * OW, first_row = (long long)blockIdx.x * BM;
    const int first_column = blockIdx.y * BN;
    for (int r = threadIdx.x; r < BM; r += blockDim.x) {
        const long long row = first_row + r, n = row / (OH * OW);
        const int pixel = (int)(row - n * (OH * OW));
        image[r] = n * H * W * C;
        top[r] = row < rows ? pixel / OW * SH - PH : OUTSIDE;
        side[r] = pixel % OW * SW - PW;
    }
    __syncthreads();
    T total[4][4] = {};
    for (int tap = 0; tap < KH * KW; tap++) {
        const int down = tap / KW * DH, across = tap % KW * DW;
        for (int c0 = 0; c0 < C; c0 += DEPTH) {
            for (int e = threadIdx.x; e < BM * DEPTH; e += blockDim.x) {
                const int d = e % DEPTH, r = e / DEPTH, c = c0 + d, h = top[r] + down, w = side[r] + across;
                left[d][r] = c < C && within(h, H) && within(w, W)
                    ? activation(x, image[r] + ((long long)h * W + w) * C + c, c, mean, scale, shift) : T(0);
            }
            for (int e = threadIdx.x; e < BN * DEPTH; e += blockDim.x) {
                const int d = e / BN, o = first_column + e % BN, c = c0 + d;
                right[d][e % BN] = c < C && o < O ? weight[((long long)tap * C + c) * O + o] : T(0);
            }
            __syncthreads();
            multiply<T, BM, BN>(left, right, total);
            __syncthreads();
        }
    }
    const int row = threadIdx.x / (BN / 4), column = threadIdx.x % (BN / 4);
    for (int p = 0; p < 4; p++)
        for (int q = 0; q < 4; q++) {
            const long long m = first_row + row + p * (BM / 4);
            const int o = first_column + column + q * (BN / 4);
            if (m < rows && o < O) y[m * O + o] = total[p][q];
        }
    if (means) {  // pixels beyond the last one have total 0
        const T count = T(rows - first_row < BM ? rows - first_row : BM);
        sum_columns<BM, BN>(total, sums);
        if (threadIdx.x < BN) sums[0][threadIdx.x] /= count;
        store_part(sums, means, blockIdx.x, gridDim.x, first_column, O);
        __syncthreads();
        for (int q = 0; q < 4; q++) {
            const T middle = sums[0][column + q * (BN / 4)];
            for (int p = 0; p < 4; p++) {
                const T gap = first_row + row + p * (BM / 4) < rows ? total[p][q] - middle : T(0);
                total[p][q] = gap * gap;
            }
        }
        sum_columns<BM, BN>(total, sums);
        store_part(sums, squares, blockIdx.x, gridDim.x, first_column, O);
    }
}

// Grid: (tiles of pixels, tiles of C, SH * SW). Pixels (h, w) with the same h % SH and w % SW meet the same taps, so each such
// class has tiles of its own and skips the taps that meet none of its pixels: a stride costs no multiplications by zero.
//
// residual, where it is not null, is added to dx.
// mean not null: then dx = 0 where the relu behind the prologue was, and each tile's sums of dx and dx * (x - mean) go to
// parts_dx, parts_dxx: (C, tiles of all classes).
template <typename T, int BM, int BN>
__global__ void conv2d_input_gradient(const T* dy, const T* weight, const T* residual, const T* x, const T* mean,
                                      const T* scale, const T* shift, T* dx, T* parts_dx, T* parts_dxx, int N, GEOMETRY) {
    __shared__ T left[DEPTH][BM + PAD], right[DEPTH][BN + PAD], sums[BM / 4][BN];
    __shared__ long long image[BM];
    __shared__ int top[BM], side[BM];
    const int phase_h = blockIdx.z / SW, phase_w = blockIdx.z % SW;
    const int class_H = (H - phase_h + SH - 1) / SH, class_W = (W - phase_w + SW - 1) / SW;  // 0 beyond the image
    const long long rows = (long long)N * class_H * class_W, first_row = (long long)blockIdx.x * BM;
    const int first_column = blockIdx.y * BN, pixels = class_H * class_W > 0 ? class_H * class_W : 1;
    for (int r = threadIdx.x; r < BM; r += blockDim.x) {
        const long long row = first_row + r, n = row / pixels;
        const int pixel = (int)(row - n * pixels);
        image[r] = n;
        top[r] = row < rows ? pixel / class_W : OUTSIDE;
        side[r] = row < rows ? pixel % class_W : OUTSIDE;
    }
    __syncthreads();
    T total[4][4] = {};
    for (int tap = 0; tap < KH * KW; tap++) {
        const int down = phase_h + PH - tap / KW * DH, across = phase_w + PW - tap % KW * DW;
        if (down % SH != 0 || across % SW != 0) continue;  // the same for the whole block, as the barriers ask for
        for (int o0 = 0; o0 < O; o0 += DEPTH) {
            for (int e = threadIdx.x; e < BM * DEPTH; e += blockDim.x) {
                const int d = e % DEPTH, r = e / DEPTH, o = o0 + d, h = top[r] + down / SH, w = side[r] + across / SW;
                left[d][r] = o < O && within(h, OH) && within(w, OW) ? dy[((image[r] * OH + h) * OW + w) * O + o] : T(0);
            }
            for (int e = threadIdx.x; e < BN * DEPTH; e += blockDim.x) {
                const int d = e % DEPTH, o = o0 + d, c = first_column + e / DEPTH;
                right[d][e / DEPTH] = c < C && o < O ? weight[((long long)tap * C + c) * O + o] : T(0);
            }
            __syncthreads();
            multiply<T, BM, BN>(left, right, total);
            __syncthreads();
        }
    }
    const int row = threadIdx.x / (BN / 4), column = threadIdx.x % (BN / 4);
    T products[4][4];
#pragma unroll  // or the sums leave their registers
    for (int p = 0; p < 4; p++)
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const int r = row + p * (BM / 4), c = first_column + column + q * (BN / 4);
            products[p][q] = T(0);
            if (first_row + r < rows && c < C) {
                const long long h = phase_h + (long long)top[r] * SH, w = phase_w + (long long)side[r] * SW;
                const long long index = ((image[r] * H + h) * W + w) * C + c;
                if (residual) total[p][q] += residual[index];
                if (mean) {
                    const T gap = x[index] - mean[c];
                    if (!(gap * scale[c] + shift[c] > T(0))) total[p][q] = T(0);
                    products[p][q] = total[p][q] * gap;
                }
                dx[index] = total[p][q];
            }
        }
    if (mean) {
        const long long tile = (long long)blockIdx.z * gridDim.x + blockIdx.x, tiles = (long long)gridDim.z * gridDim.x;
        sum_columns<BM, BN>(total, sums);
        store_part(sums, parts_dx, tile, tiles, first_column, C);
        sum_columns<BM, BN>(products, sums);
        store_part(sums, parts_dxx, tile, tiles, first_column, C);
    }
}

// Grid: (tiles of the KH * KW * C rows, tiles of O, splits of the pixels); -> partial[split][KH * KW * C][O], which sum_splits
// adds up in one order, so that results do not change from run to run. split: pixels of each.
template <typename T, int BM, int BN>
__global__ void conv2d_weight_gradient(const T* dy, const T* x, const T* mean, const T* scale, const T* shift, T* partial,
                                       int N, int split, GEOMETRY) {
    __shared__ T left[DEPTH][BM + PAD], right[DEPTH][BN + PAD];
    __shared__ int down[BM], across[BM], channel[BM], top[DEPTH], side[DEPTH];
    __shared__ long long image[DEPTH];
    const int rows = KH * KW * C, first_row = blockIdx.x * BM, first_column = blockIdx.y * BN;
    const long long pixels = (long long)N * OH * OW, begin = (long long)blockIdx.z * split;
    const long long end = begin + split < pixels ? begin + split : pixels;
    for (int r = threadIdx.x; r < BM; r += blockDim.x) {
        const int row = first_row + r, tap = row / C;
        down[r] = row < rows ? tap / KW * DH : OUTSIDE;
        across[r] = tap % KW * DW;
        channel[r] = row % C;
    }
    T total[4][4] = {};
    for (long long first = begin; first < end; first += DEPTH) {
        for (int d = threadIdx.x; d < DEPTH; d += blockDim.x) {
            const long long m = first + d, n = m / (OH * OW);
            const int pixel = (int)(m - n * (OH * OW));
            image[d] = n * H * W * C;
            top[d] = m < end ? pixel / OW * SH - PH : OUTSIDE;
            side[d] = pixel % OW * SW - PW;
        }
        __syncthreads();
        for (int e = threadIdx.x; e < DEPTH * BM; e += blockDim.x) {
            const int d = e / BM, r = e % BM, h = top[d] + down[r], w = side[d] + across[r];
            const long long index = image[d] + ((long long)h * W + w) * C + channel[r];
            left[d][r] = within(h, H) && within(w, W)
                ? activation(x, index, channel[r], mean, scale, shift) : T(0);
        }
        for (int e = threadIdx.x; e < DEPTH * BN; e += blockDim.x) {
            const int d = e / BN, o = first_column + e % BN;
            right[d][e % BN] = first + d < end && o < O ? dy[(first + d) * O + o] : T(0);
        }
        __syncthreads();
        multiply<T, BM, BN>(left, right, total);
        // No barrier here: the next turn first writes image, top and side, which nobody reads any more, and then waits.
    }
    const int row = threadIdx.x / (BN / 4), column = threadIdx.x % (BN / 4);
    for (int p = 0; p < 4; p++)
        for (int q = 0; q < 4; q++) {
            const int m = first_row + row + p * (BM / 4), o = first_column + column + q * (BN / 4);
            if (m < rows && o < O) partial[((long long)blockIdx.z * rows + m) * O + o] = total[p][q];
        }
}

// dweight = the sum of partial, (splits, count), over the splits. The threads of a block share 32 elements.
template <typename T>
__global__ void sum_splits(const T* partial, T* dweight, long long splits, long long count) {
    __shared__ T shared[BLOCK];
    const long long column = (long long)blockIdx.x * WARP + threadIdx.x % WARP;
    T sum = T(0);
    if (column < count)
        for (long long row = threadIdx.x / WARP; row < splits; row += BLOCK / WARP) sum += partial[row * count + column];
    sum = column_sum(sum, shared, WARP);
    if (threadIdx.x < WARP && column < count) dweight[column] = sum;
}

// patches[n, oh, ow, i, j, c] = a[n, h, w, c]. A warp copies the C channels of one (pixel, tap). Moves KH * KW times y's pixels.
template <typename T>
__global__ void im2col(const T* x, const T* mean, const T* scale, const T* shift, T* patches, int N, GEOMETRY) {
    const int lane = threadIdx.x % 32, taps = KH * KW;
    const long long count = (long long)N * OH * OW * taps, step = (long long)gridDim.x * (blockDim.x / 32);
    for (long long item = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; item < count; item += step) {
        const long long row = item / taps, n = row / (OH * OW);
        const int tap = (int)(item - row * taps), pixel = (int)(row - n * (OH * OW));
        const int h = pixel / OW * SH - PH + tap / KW * DH, w = pixel % OW * SW - PW + tap % KW * DW;
        const bool inside = within(h, H) && within(w, W);
        const long long from = ((n * H + h) * W + w) * C;
        for (int c = lane; c < C; c += 32)
            patches[item * C + c] = inside ? activation(x, from + c, c, mean, scale, shift) : T(0);
    }
}

// The adjoint, read instead of scattered, so that nothing is added atomically: dx[n, h, w, c] = the sum of the patch entries
// that im2col would have copied from this pixel. A warp computes the C channels of one pixel.
template <typename T>
__global__ void col2im(const T* patches, T* dx, int N, GEOMETRY) {
    const int lane = threadIdx.x % 32, taps = KH * KW;
    const long long count = (long long)N * H * W, step = (long long)gridDim.x * (blockDim.x / 32);
    for (long long item = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; item < count; item += step) {
        const long long n = item / (H * W);
        const int pixel = (int)(item - n * (H * W)), h = pixel / W + PH, w = pixel % W + PW;
        for (int c = lane; c < C; c += 32) {
            T sum = T(0);
            for (int tap = 0; tap < taps; tap++) {
                const int down = h - tap / KW * DH, across = w - tap % KW * DW;
                if (down % SH == 0 && across % SW == 0 && within(down / SH, OH) && within(across / SW, OW))
                    sum += patches[(((n * OH + down / SH) * OW + across / SW) * taps + tap) * C + c];
            }
            dx[item * C + c] = sum;
        }
    }
}
