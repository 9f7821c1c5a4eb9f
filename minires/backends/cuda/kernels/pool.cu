// Pooling and the padded shortcut on (N, H, W, C) images. A thread an element of the result, in strides of the grid, so
// that neighbours read neighbouring channels. Backward gathers: a pixel asks the windows that cover it, so nothing is added
// atomically and the bits are the same in every run.
//
//     maxpool_forward      y = max over the window; argmax = the first tap that has it, i * KW + j     reads 1, writes 2 y
//     maxpool_backward     dx = sum of the dy whose window it won                                      reads 2 y, writes 1
//     avgpool_forward      y = sum over the window / (KH * KW), padding counts as zeros                reads 1, writes y
//     avgpool_backward     dx = sum of dy / (KH * KW) over the windows that cover it                   reads y, writes 1
//     image_means          y = mean over H * W: a block an image and 32 channels                       reads 1
//     spread_means         dx = dy / (H * W) at every pixel                                            writes 1
//     pad_shortcut_forward, _backward   every stride-th pixel, zero channels around                    reads 1, writes 1
//
// (in images; overlapping windows are read again from cache)
#include "common.cuh"


// Where element i of a (., A, B, C) array lies.
struct Place {
    long long n, a, b, c;
    __device__ Place(long long i, long long A, long long B, long long C) {
        c = i % C;
        i /= C;
        b = i % B;
        i /= B;
        a = i % A;
        n = i / A;
    }
};

template <typename T>
__global__ void maxpool_forward(const T* x, T* y, int* argmax, long long count, long long H, long long W, long long C,
                                long long OH, long long OW, int KH, int KW, int SH, int SW, int PH, int PW, int DH, int DW) {
    FOR_EACH(i, count) {
        Place at(i, OH, OW, C);
        T best = 0;
        int winner = -1;
        for (int tap = 0; tap < KH * KW; tap++) {
            long long h = at.a * SH - PH + (long long)(tap / KW) * DH, w = at.b * SW - PW + (long long)(tap % KW) * DW;
            if (h < 0 || h >= H || w < 0 || w >= W) continue;
            T value = x[((at.n * H + h) * W + w) * C + at.c];
            if (winner < 0 || value > best || (value != value && best == best)) {
                best = value;
                winner = tap;
            }
        }
        y[i] = best;
        argmax[i] = winner;
    }
}

// The output row (or column) whose tap `tap` meets row `at` of the image, or -1.
__device__ inline long long output_at(long long at, int tap, int stride, int padding, int dilation, long long outputs) {
    long long from = at + padding - (long long)tap * dilation;
    return from >= 0 && from % stride == 0 && from / stride < outputs ? from / stride : -1;
}

template <typename T>
__global__ void maxpool_backward(const T* dy, const int* argmax, T* dx, long long count, long long H, long long W, long long C,
                                 long long OH, long long OW, int KH, int KW, int SH, int SW, int PH, int PW, int DH, int DW) {
    FOR_EACH(i, count) {
        Place at(i, H, W, C);
        T sum = 0;
        for (int tap = 0; tap < KH * KW; tap++) {
            long long oh = output_at(at.a, tap / KW, SH, PH, DH, OH), ow = output_at(at.b, tap % KW, SW, PW, DW, OW);
            if (oh < 0 || ow < 0) continue;
            long long o = ((at.n * OH + oh) * OW + ow) * C + at.c;
            if (argmax[o] == tap) sum += dy[o];
        }
        dx[i] = sum;
    }
}

template <typename T>
__global__ void avgpool_forward(const T* x, T* y, long long count, long long H, long long W, long long C, long long OH,
                                long long OW, int KH, int KW, int SH, int SW, int PH, int PW) {
    FOR_EACH(i, count) {
        Place at(i, OH, OW, C);
        T sum = 0;
        for (int tap = 0; tap < KH * KW; tap++) {
            long long h = at.a * SH - PH + tap / KW, w = at.b * SW - PW + tap % KW;
            if (h >= 0 && h < H && w >= 0 && w < W) sum += x[((at.n * H + h) * W + w) * C + at.c];
        }
        y[i] = sum / (KH * KW);
    }
}

template <typename T>
__global__ void avgpool_backward(const T* dy, T* dx, long long count, long long H, long long W, long long C, long long OH,
                                 long long OW, int KH, int KW, int SH, int SW, int PH, int PW) {
    FOR_EACH(i, count) {
        Place at(i, H, W, C);
        T sum = 0;
        for (int tap = 0; tap < KH * KW; tap++) {
            long long oh = output_at(at.a, tap / KW, SH, PH, 1, OH), ow = output_at(at.b, tap % KW, SW, PW, 1, OW);
            if (oh >= 0 && ow >= 0) sum += dy[((at.n * OH + oh) * OW + ow) * C + at.c];
        }
        dx[i] = sum / (KH * KW);
    }
}

// Columns of common.cuh with an image's pixels as the rows of a block: span = H * W, blockIdx.y = n.
template <typename T>
__global__ void image_means(const T* x, T* y, long long rows, long long C, int width, long long span) {
    __shared__ T shared[BLOCK];
    Columns own(rows, width, span);
    T sum = 0;
    if (own.c < C)
        for (long long row = own.row; row < own.last; row += own.step) sum += x[row * C + own.c];
    sum = column_sum(sum, shared, width);
    if (threadIdx.x < width && own.c < C) y[blockIdx.y * C + own.c] = sum / span;
}

template <typename T>
__global__ void spread_means(const T* dy, T* dx, long long count, long long C, long long pixels) {
    FOR_EACH(i, count) dx[i] = dy[i / (pixels * C) * C + i % C] / pixels;
}

// y: (N, OH, OW, O); `before` zero channels come first.
template <typename T>
__global__ void pad_shortcut_forward(const T* x, T* y, long long count, long long H, long long W, long long C, long long OH,
                                     long long OW, long long O, long long before, int SH, int SW) {
    FOR_EACH(i, count) {
        Place at(i, OH, OW, O);
        long long c = at.c - before;
        y[i] = c >= 0 && c < C ? x[((at.n * H + at.a * SH) * W + at.b * SW) * C + c] : T(0);
    }
}

template <typename T>
__global__ void pad_shortcut_backward(const T* dy, T* dx, long long count, long long H, long long W, long long C, long long OH,
                                      long long OW, long long O, long long before, int SH, int SW) {
    FOR_EACH(i, count) {
        Place at(i, H, W, C);
        bool kept = at.a % SH == 0 && at.b % SW == 0;
        dx[i] = kept ? dy[((at.n * OH + at.a / SH) * OW + at.b / SW) * O + before + at.c] : T(0);
    }
}
