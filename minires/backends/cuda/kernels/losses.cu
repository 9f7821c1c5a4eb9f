// The losses, on (N, K) logits or on any two arrays of one shape.
//
//     softmax_rows            p = softmax(y) and each row's -sum_k q_k log p_k     reads y three times (cached), writes p
//     softmax_gradient        dy = (p - q) / N                                     reads p, writes dy
//     squared_differences     a block's part of sum((y - target)^2)                reads 2
//     difference              dy = (y - target) * factor                           reads 2, writes 1
//     scaled_sum              sum of all parts * factor, a single block            a few bytes
//
// q = (1 - s) * one_hot(target) + s / K. A warp a row of logits; elsewhere a thread an element, in strides of the grid. The
// loss stays on the device: whoever wants to see it reads it. A target outside 0 .. K-1 makes it NaN.
#include "common.cuh"

template <typename T>
__global__ void softmax_rows(const T* logits, const long long* target, T* softmax, T* losses, T smoothing, long long N,
                             long long K) {
    long long warp = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / WARP, warps = (long long)gridDim.x * blockDim.x / WARP;
    int lane = threadIdx.x % WARP;
    for (long long n = warp; n < N; n += warps) {
        const T* row = logits + n * K;
        T largest = row[0], sum = 0, of_all = 0;
        for (long long k = lane; k < K; k += WARP) largest = row[k] > largest || row[k] != row[k] ? row[k] : largest;
        largest = warp_max(largest);
        for (long long k = lane; k < K; k += WARP) sum += exp(row[k] - largest);
        T normaliser = log(warp_sum(sum));
        for (long long k = lane; k < K; k += WARP) {
            T log_p = row[k] - largest - normaliser;
            softmax[n * K + k] = exp(log_p);
            of_all += log_p;
        }
        of_all = warp_sum(of_all);
        if (lane == 0) {
            bool known = target[n] >= 0 && target[n] < K;
            T picked = known ? row[target[n]] - largest - normaliser : (T)nan("");
            losses[n] = -((1 - smoothing) * picked + smoothing * (of_all / K));
        }
    }
}

template <typename T>
__global__ void softmax_gradient(const T* softmax, const long long* target, T* dy, T smoothing, long long N, long long K) {
    FOR_EACH(i, N * K) {
        T q = smoothing / K + (i % K == target[i / K] ? 1 - smoothing : T(0));
        dy[i] = (softmax[i] - q) / N;
    }
}

template <typename T>
__global__ void squared_differences(const T* y, const T* target, T* parts, long long count) {
    __shared__ T shared[BLOCK];
    T sum = 0;
    FOR_EACH(i, count) sum += (y[i] - target[i]) * (y[i] - target[i]);
    sum = column_sum(sum, shared, 1);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

template <typename T>
__global__ void difference(const T* y, const T* target, T* dy, T factor, long long count) {
    FOR_EACH(i, count) dy[i] = (y[i] - target[i]) * factor;
}

template <typename T>
__global__ void scaled_sum(const T* parts, T* total, T factor, long long count) {
    __shared__ T shared[BLOCK];
    T sum = 0;
    FOR_EACH(i, count) sum += parts[i];
    sum = column_sum(sum, shared, 1);
    if (threadIdx.x == 0) *total = sum * factor;
}
