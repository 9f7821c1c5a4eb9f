// The optimisers' updates, one launch over all parameters of a network.
//
//     sgd      g = grad + decay * p;  velocity = momentum * velocity + g;  p -= lr * (g + momentum * velocity  or  velocity)
//              reads 3, writes 2 arrays of a parameter's size
//     adamw    p *= 1 - lr * decay;  first = b1 * first + (1 - b1) * grad;  second = b2 * second + (1 - b2) * grad^2
//              p -= rate * first / (sqrt(second / correction) + eps),  rate = lr / (1 - b1^t),  correction = 1 - b2^t
//              reads 4, writes 3
//
// The arrays are given by tables of their addresses. A block takes a piece of up to `piece` neighbouring elements of one
// array; owner and start say which. So a network of 65 small arrays fills the device, and costs one launch instead of 65.
#include "common.cuh"

typedef unsigned long long Address;

template <typename T>
__global__ void sgd(const Address* parameters, const Address* grads, const Address* velocities, const long long* sizes,
                    const T* decays, const int* owner, const long long* start, long long pieces, long long piece, T lr,
                    T momentum, bool nesterov) {
    for (long long b = blockIdx.x; b < pieces; b += gridDim.x) {
        int of = owner[b];
        T *parameter = (T*)parameters[of], *velocity = (T*)velocities[of], decay = decays[of];
        const T* grad = (const T*)grads[of];
        long long end = start[b] + piece < sizes[of] ? start[b] + piece : sizes[of];
        for (long long i = start[b] + threadIdx.x; i < end; i += blockDim.x) {
            T g = grad[i] + decay * parameter[i], v = momentum * velocity[i] + g;
            velocity[i] = v;
            parameter[i] -= lr * (nesterov ? g + momentum * v : v);
        }
    }
}

template <typename T>
__global__ void adamw(const Address* parameters, const Address* grads, const Address* firsts, const Address* seconds,
                      const long long* sizes, const T* decays, const int* owner, const long long* start, long long pieces,
                      long long piece, T lr, T b1, T keep1, T b2, T keep2, T rate, T correction, T eps) {
    for (long long b = blockIdx.x; b < pieces; b += gridDim.x) {
        int of = owner[b];
        T *parameter = (T*)parameters[of], *first = (T*)firsts[of], *second = (T*)seconds[of];
        const T* grad = (const T*)grads[of];
        T shrink = 1 - lr * decays[of];
        long long end = start[b] + piece < sizes[of] ? start[b] + piece : sizes[of];
        for (long long i = start[b] + threadIdx.x; i < end; i += blockDim.x) {
            T m = b1 * first[i] + keep1 * grad[i], v = b2 * second[i] + keep2 * grad[i] * grad[i];
            first[i] = m;
            second[i] = v;
            parameter[i] = parameter[i] * shrink - rate * m / (sqrt(v / correction) + eps);
        }
    }
}
