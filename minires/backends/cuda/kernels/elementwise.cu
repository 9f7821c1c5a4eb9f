// Element by element:
//
//     relu_forward    y = max(x, 0)                       reads 1, writes 1 image
//     relu_backward   dx = dy where y > 0, else 0         reads 2, writes 1
//     add             sum = a + b                         reads 2, writes 1
//     dropout         y = x / kept where keep, else 0     reads 1 and a byte an element, writes 1     kept = 1 - p
//
// A thread an element, in strides of the grid.
#include "common.cuh"

template <typename T>
__global__ void relu_forward(const T* x, T* y, long long count) {
    FOR_EACH(i, count) y[i] = x[i] <= T(0) ? T(0) : x[i];  // a NaN stays one
}

template <typename T>
__global__ void relu_backward(const T* dy, const T* y, T* dx, long long count) {
    FOR_EACH(i, count) dx[i] = y[i] > T(0) ? dy[i] : T(0);
}

template <typename T>
__global__ void add(const T* a, const T* b, T* sum, long long count) {
    FOR_EACH(i, count) sum[i] = a[i] + b[i];
}

template <typename T>
__global__ void dropout(const T* x, const bool* keep, T* y, T kept, long long count) {
    FOR_EACH(i, count) y[i] = keep[i] ? x[i] / kept : T(0);
}
