// A batch from a data set of bytes on the device: gather, crop, flip, standardise.
//
//     y[k, h, w, c] = table[c][ images[order[k], h + top[k] - padding, w' + left[k] - padding, c] ]     black outside
//
// w' = w, or W - 1 - w where mirrored[k]; table[c][v] = (v / 255 - mean[c]) / std[c], rounded once from double. A thread an
// element of y, in strides of the grid. Reads a byte and writes a T an element. top null: neither crop nor flip.
#include "common.cuh"

template <typename T>
__global__ void gather_batch(const unsigned char* images, const long long* order, const int* top, const int* left,
                             const bool* mirrored, const T* table, T* y, long long count, long long H, long long W, long long C,
                             int padding) {
    FOR_EACH(i, count) {
        long long c = i % C, w = i / C % W, h = i / (C * W) % H, k = i / (C * W * H);
        if (top) {
            w = (mirrored[k] ? W - 1 - w : w) + left[k] - padding;
            h += top[k] - padding;
        }
        bool inside = h >= 0 && h < H && w >= 0 && w < W;
        int value = inside ? images[((order[k] * H + h) * W + w) * C + c] : 0;
        y[i] = table[c * 256 + value];
    }
}
