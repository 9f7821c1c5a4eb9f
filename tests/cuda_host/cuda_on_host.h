// The CUDA built-ins on a host, so that the .cu files of minires/backends/cuda run, as they stand, where there is no GPU.
//
// A block's threads run one after another. One that waits at __syncthreads or in a warp shuffle is a fiber: it is put aside
// on its own stack and goes on when the others have come as far. The order in which threads run is drawn anew after every
// barrier, so code that reads what another thread has not written yet, or no longer holds, gives another result: that is
// how a forgotten barrier shows. A barrier that some threads of the block never reach is an error, and so is one that they
// reach at different lines. Shared memory is static storage and keeps what the block before left in it, as on a device.
//
// A kernel is called through Kernel<&name<float>>::launch, which compares the types it is given with the kernel's own.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <type_traits>

#include "fiber_switch.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static
#define __constant__ static const
#define __align__(n) __attribute__((aligned(n)))

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(16) double2 { double x, y; };
struct __align__(16) int4 { int x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// Not static: what a barrier changes must be read again after it.
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_host {

enum State : unsigned char { FRESH, READY, AT_BARRIER, AT_WARP_BARRIER, DONE };
constexpr int MOST_THREADS = 1024;
constexpr size_t STACK = 128 << 10;

struct Fiber {
    void* top = nullptr;  // of its saved stack
    char* stack = nullptr;
    bool started = false;
};

struct Thread {
    State state;
    Fiber* fiber;
    int line;
    unsigned parity;           // which of the two shuffle slots is next
    double slot[2][2];         // what the lane shows its warp: 16 bytes a slot
};

inline Thread threads[MOST_THREADS];
inline Fiber fibers[MOST_THREADS];
inline Fiber* idle[MOST_THREADS];
inline int idle_count, thread_count, current, finished;
inline Fiber* running;
inline void* scheduler;  // the top of the stack that everything was called from
inline int queue[MOST_THREADS];
inline int queue_length, queue_next;
inline uint64_t random_state = 1;
inline char error[512];
inline void (*body)(const void*);
inline const void* body_arguments;

inline unsigned random_below(unsigned n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return unsigned((random_state >> 32) * uint64_t(n) >> 32);
}

inline void become(int thread) {
    current = thread;
    threadIdx.x = unsigned(thread) % blockDim.x;
    threadIdx.y = unsigned(thread) / blockDim.x % blockDim.y;
    threadIdx.z = unsigned(thread) / (blockDim.x * blockDim.y);
}

inline void work();

inline void start(Fiber* fiber) {
    // Staggered, or the tops of all stacks would share one set of the cache.
    if (!fiber->stack) fiber->stack = static_cast<char*>(malloc(STACK + 64 * 448)) + (fiber - fibers) % 64 * 448;
    uintptr_t* top = reinterpret_cast<uintptr_t*>((reinterpret_cast<uintptr_t>(fiber->stack) + STACK) & ~uintptr_t(15)) - SAVED;
    memset(top, 0, SAVED * sizeof *top);
    top[RETURN_TO] = reinterpret_cast<uintptr_t>(&work);
    fiber->top = top;
    fiber->started = true;
}

// From whoever runs, a fiber or the scheduler, to the first of the queue; to the scheduler when there is none.
inline void go_on(void** from) {
    if (queue_next == queue_length || error[0]) {
        if (from != &scheduler) cuda_host_switch(from, scheduler);
        return;
    }
    Thread& thread = threads[queue[queue_next]];
    if (thread.state == FRESH) {
        running = idle[--idle_count];  // it takes the thread from the queue itself
        if (!running->started) start(running);
    } else {
        queue_next++;
        running = thread.fiber;
    }
    if (from != &running->top) cuda_host_switch(from, running->top);
}

// What a fiber does: threads that have not begun, as long as there are any in front; then it makes way.
inline void work() {
    for (;;) {
        Fiber* own = running;
        while (queue_next < queue_length && threads[queue[queue_next]].state == FRESH) {
            become(queue[queue_next++]);
            body(body_arguments);
            threads[current].state = DONE;  // `current` is this thread again, wherever it has waited
            finished++;
        }
        idle[idle_count++] = own;
        go_on(&own->top);
    }
}

inline void wait(State state, int line) {
    int own = current;
    Thread& thread = threads[own];
    thread.state = state;
    thread.line = line;
    thread.fiber = running;
    go_on(&thread.fiber->top);
    become(own);
}

inline void fail(const char* what, int line) {
    snprintf(error, sizeof error, "block (%u, %u, %u): %s (line %d of the source)", blockIdx.x, blockIdx.y, blockIdx.z, what,
             line);
}

inline void shuffle_queue() {
    for (int i = queue_length - 1; i > 0; i--) {
        int j = int(random_below(unsigned(i) + 1)), t = queue[i];
        queue[i] = queue[j];
        queue[j] = t;
    }
    queue_next = 0;
}

// Puts everybody who may go on into the queue; false when nobody may.
inline bool release() {
    int waiting = 0, line = 0;
    bool same = true;
    queue_length = 0;
    for (int t = 0; t < thread_count; t++) {
        if (threads[t].state != AT_BARRIER) continue;
        same = same && (!waiting || threads[t].line == line);
        line = threads[t].line;
        waiting++;
    }
    if (waiting == thread_count) {
        if (!same) return fail("its threads wait at different __syncthreads", line), false;
        for (int t = 0; t < thread_count; t++) threads[t].state = READY, queue[queue_length++] = t;
    } else {
        for (int first = 0; first < thread_count; first += warpSize) {
            int last = first + warpSize < thread_count ? first + warpSize : thread_count;
            bool all = true;
            for (int t = first; t < last; t++)
                all = all && threads[t].state == AT_WARP_BARRIER && threads[t].line == threads[first].line;
            for (int t = first; all && t < last; t++) threads[t].state = READY, queue[queue_length++] = t;
        }
        if (!queue_length) {
            const char* what = waiting ? "__syncthreads is not reached by all of its threads"
                                       : "a warp's lanes do not meet in one shuffle or __syncwarp";
            for (int t = 0; t < thread_count && !line; t++) line = threads[t].state == AT_WARP_BARRIER ? threads[t].line : 0;
            return fail(what, line), false;
        }
    }
    shuffle_queue();
    return true;
}

inline bool run_block() {
    finished = 0;
    idle_count = 0;
    for (int f = thread_count - 1; f >= 0; f--) idle[idle_count++] = &fibers[f];
    queue_length = thread_count;
    for (int t = 0; t < thread_count; t++) {
        threads[t].state = FRESH;
        threads[t].fiber = nullptr;
        threads[t].parity = 0;
        queue[t] = t;
    }
    shuffle_queue();
    for (;;) {
        go_on(&scheduler);
        if (finished == thread_count) return true;
        if (error[0] || !release()) {
            for (Fiber& fiber : fibers) fiber.started = false;  // those that wait are given up
            return false;
        }
    }
}

// --- argument types: "f4" is float, "f4*" a pointer to floats, whose const does not count; "null" is 8 bytes of zeros ---

template <typename T> struct Code {
    static void write(char* text) {
        using V = typename std::remove_cv<T>::type;
        char kind = std::is_same<V, bool>::value ? 'b' : std::is_floating_point<V>::value ? 'f'
                  : std::is_unsigned<V>::value ? 'u' : 'i';
        snprintf(text, 8, "%c%d", kind, int(sizeof(V)));
    }
};
template <typename T> struct Code<T*> {
    static void write(char* text) {
        Code<T>::write(text);
        strcat(text, "*");
    }
};
template <> struct Code<void*> {
    static void write(char* text) { strcpy(text, "v*"); }
};

template <typename... P> struct Pack {};
template <typename First, typename... Rest> struct Pack<First, Rest...> {
    First first;
    Pack<Rest...> rest;
};

inline bool unpack(Pack<>&, int, void**, const char**) { return true; }
template <typename First, typename... Rest>
bool unpack(Pack<First, Rest...>& pack, int place, void** values, const char** codes) {
    char own[16];
    Code<First>::write(own);
    bool null = (std::is_pointer<First>::value || !strcmp(own, "u8")) && !strcmp(codes[place], "null");
    if (!null && strcmp(own, codes[place])) {
        snprintf(error, sizeof error, "argument %d is %s and the kernel takes %s", place, codes[place], own);
        return false;
    }
    memcpy(&pack.first, values[place], sizeof(First));
    return unpack(pack.rest, place + 1, values, codes);
}

template <typename... All, typename... Got>
inline void call(void (*kernel)(All...), const Pack<>&, Got... got) { kernel(got...); }
template <typename... All, typename First, typename... Rest, typename... Got>
inline void call(void (*kernel)(All...), const Pack<First, Rest...>& pack, Got... got) {
    call(kernel, pack.rest, got..., pack.first);
}

template <auto kernel> struct Kernel;
template <typename... P, void (*kernel)(P...)> struct Kernel<kernel> {
    static void thread(const void* arguments) { call(kernel, *static_cast<const Pack<P...>*>(arguments)); }

    // nullptr, or a sentence that says what was wrong.
    static const char* launch(const unsigned* grid, const unsigned* block, uint64_t seed, int count, void** values,
                              const char** codes) {
        Pack<P...> pack{};
        error[0] = 0;
        if (count != int(sizeof...(P))) {
            snprintf(error, sizeof error, "got %d arguments and the kernel takes %d", count, int(sizeof...(P)));
            return error;
        }
        if (!unpack(pack, 0, values, codes)) return error;
        gridDim = {grid[0], grid[1], grid[2]};
        blockDim = {block[0], block[1], block[2]};
        thread_count = int(block[0] * block[1] * block[2]);
        random_state = seed | 1;
        body = thread;
        body_arguments = &pack;
        for (unsigned z = 0; z < grid[2]; z++)
            for (unsigned y = 0; y < grid[1]; y++)
                for (unsigned x = 0; x < grid[0]; x++) {
                    blockIdx = {x, y, z};
                    if (!run_block()) return error;
                }
        return nullptr;
    }
};

template <typename T> T shuffle(T value, int from, unsigned mask, int line) {
    static_assert(sizeof(T) <= 16, "a lane shows at most 16 bytes");
    int first = current / warpSize * warpSize;
    unsigned here = unsigned(thread_count - first >= warpSize ? 0xffffffffu : (1u << (thread_count - first)) - 1);
    if ((mask & here) != here) {
        fail("a warp shuffle's mask leaves out lanes of the block", line);
        wait(AT_WARP_BARRIER, line);  // for good
    }
    unsigned parity = threads[current].parity;
    threads[current].parity ^= 1;
    memcpy(threads[current].slot[parity], &value, sizeof(T));
    wait(AT_WARP_BARRIER, line);
    int source = first + from < thread_count ? first + from : current;
    memcpy(&value, threads[source].slot[parity], sizeof(T));
    return value;
}

inline int lane() { return current % warpSize; }
// The lane to read from; outside its segment of `width` lanes a lane reads itself.
inline int within(int lane, int target, int width) {
    return target / width == lane / width && target >= 0 && target < warpSize ? target : lane;
}

}  // namespace cuda_host

#define __syncthreads() cuda_host::wait(cuda_host::AT_BARRIER, __LINE__)
#define __syncwarp(...) cuda_host::wait(cuda_host::AT_WARP_BARRIER, __LINE__)

template <typename T> T __shfl_sync(unsigned mask, T value, int from, int width = warpSize, int line = __builtin_LINE()) {
    int own = cuda_host::lane();
    return cuda_host::shuffle(value, own / width * width + from % width, mask, line);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int by, int width = warpSize, int line = __builtin_LINE()) {
    int own = cuda_host::lane();
    return cuda_host::shuffle(value, cuda_host::within(own, own ^ by, width), mask, line);
}
template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = warpSize,
                                         int line = __builtin_LINE()) {
    int own = cuda_host::lane();
    return cuda_host::shuffle(value, cuda_host::within(own, own + int(by), width), mask, line);
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = warpSize,
                                       int line = __builtin_LINE()) {
    int own = cuda_host::lane();
    return cuda_host::shuffle(value, cuda_host::within(own, own - int(by), width), mask, line);
}

// Threads run one at a time, so an atomic operation is a plain one.
template <typename T> T atomicAdd(T* where, T value) {
    T before = *where;
    *where = before + value;
    return before;
}
template <typename T> T atomicMax(T* where, T value) {
    T before = *where;
    if (value > before) *where = value;
    return before;
}
template <typename T> T __ldg(const T* where) { return *where; }

template <typename A, typename B> typename std::common_type<A, B>::type min(A a, B b) { return a < b ? a : b; }
template <typename A, typename B> typename std::common_type<A, B>::type max(A a, B b) { return a < b ? b : a; }
