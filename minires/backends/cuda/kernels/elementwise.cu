// Element by element:
//
//     relu_forward    y = max(x, 0)                       reads 1, writes 1 image
//     relu_backward   dx = dy where y > 0, else 0         reads 2, writes 1
//     gelu, silu      and their gradients: minires/backends/activations.py        reads 1 (2), writes 1
//     leaky_relu_backward   dx = dy where y > 0, else slope * dy; forward with x for both        reads 2, writes 1
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
__device__ T normal_cdf(T x) {
    return T(0.5) + T(0.5) * erf(x * T(0.70710678118654752440));
}

template <typename T>
__global__ void gelu_forward(const T* x, T* y, long long count) {
    FOR_EACH(i, count) y[i] = x[i] * normal_cdf(x[i]);
}

template <typename T>
__global__ void gelu_backward(const T* dy, const T* x, T* dx, long long count) {
    FOR_EACH(i, count) {
        T density = T(0.39894228040143267794) * exp(T(-0.5) * x[i] * x[i]);
        dx[i] = dy[i] * (normal_cdf(x[i]) + x[i] * density);
    }
}

template <typename T>
__device__ T sigmoid(T x) {  // no exponential overflows
    T e = exp(x >= T(0) ? -x : x);
    return (x >= T(0) ? T(1) : e) / (T(1) + e);
}

template <typename T>
__global__ void silu_forward(const T* x, T* y, long long count) {
    FOR_EACH(i, count) y[i] = x[i] * sigmoid(x[i]);
}

template <typename T>
__global__ void silu_backward(const T* dy, const T* x, T* dx, long long count) {
    FOR_EACH(i, count) {
        T s = sigmoid(x[i]);
        dx[i] = dy[i] * (s * (T(1) + x[i] * (T(1) - s)));
    }
}

template <typename T>
__global__ void leaky_relu_backward(const T* dy, const T* y, T* dx, T slope, long long count) {
    FOR_EACH(i, count) dx[i] = y[i] > T(0) ? dy[i] : slope * dy[i];
}

template <typename T>
__global__ void add(const T* a, const T* b, T* sum, long long count) {
    FOR_EACH(i, count) sum[i] = a[i] + b[i];
}

template <typename T>
__global__ void dropout(const T* x, const bool* keep, T* y, T kept, long long count) {
    FOR_EACH(i, count) y[i] = keep[i] ? x[i] / kept : T(0);
}
