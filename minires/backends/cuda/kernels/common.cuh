// What the kernels share: indices of 64 bits, loops over the whole grid, and sums over a block or a warp.
#pragma once

[[maybe_unused]] const int BLOCK = 256;  // threads of the blocks that the functions below are for
[[maybe_unused]] const int WARP = 32;
[[maybe_unused]] const unsigned ALL_LANES = 0xffffffffu;

// Every thread takes the elements i, i + threads of the grid, ...: right for any grid, and neighbours read neighbours.
#define FOR_EACH(i, count)                                                               \
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < (count);    \
         i += (long long)gridDim.x * blockDim.x)

// Sums over rows of (rows, C). A block takes `width` channels, a power of two up to 32, from blockIdx.x * width on, so that
// BLOCK / width of its threads share a channel, and the rows blockIdx.y * span .. + span. FOR_OWN_ROWS walks over the
// thread's own; `last` is where the block's rows end.
struct Columns {
    long long c, row, step, last;
    __device__ Columns(long long rows, int width, long long span) {
        c = (long long)blockIdx.x * width + threadIdx.x % width;
        row = blockIdx.y * span + threadIdx.x / width;
        step = BLOCK / width;
        last = (blockIdx.y + 1) * span < rows ? (blockIdx.y + 1) * span : rows;
    }
};

// The sum over the threads of a block that share a channel, valid in the first `width` threads. All threads call it.
template <typename T>
__device__ T column_sum(T value, T* shared, int width) {
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int half = BLOCK / 2; half >= width; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    return shared[threadIdx.x];  // its own entry: the next call may write at once
}

// The sum over a warp, in every lane.
template <typename T>
__device__ T warp_sum(T value) {
    for (int by = WARP / 2; by; by /= 2) value += __shfl_xor_sync(ALL_LANES, value, by);
    return value;
}

template <typename T>
__device__ T warp_max(T value) {
    for (int by = WARP / 2; by; by /= 2) {
        T other = __shfl_xor_sync(ALL_LANES, value, by);
        value = other > value || other != other ? other : value;
    }
    return value;
}
