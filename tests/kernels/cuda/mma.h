// CUDA on a CPU, for tests: with this folder before the toolkit's, g++ compiles csrc/cuda as C++ and a launch runs the
// kernel here, block after block. It is stricter than a GPU:
//   - a thread is a fiber that runs until it waits; who runs next is emulate_order's choice, so that a result which
//     needs a barrier that is not there changes with the order, or comes from memory nobody has written;
//   - shared memory begins as NaN, ends where the launch said (AddressSanitizer), and needs the attribute past 48 KB;
//   - of a 16 x 16 tile each lane loads, multiplies and stores its own part, waiting for no other lane;
//   - pointers of wmma must be aligned to 32 bytes, and a barrier that some thread cannot reach ends the process.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __shared__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(n)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
inline dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr size_t MOST_SHARED = 99 << 10;  // of a block on compute capability 8.6
alignas(128) char shared[MOST_SHARED + 128];

namespace emulate {

enum State { READY, AT_WARP, AT_BLOCK, DONE };
constexpr size_t STACK = 128 << 10;
struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK);
    State state;
    void *fake = nullptr;
};
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline void *scheduler_fake;
inline const void *scheduler_stack;
inline size_t scheduler_size;
inline void (*body)(void *);
inline void *argument;
inline int current;
inline unsigned order;  // 0: the lowest thread that can run; 1: the highest; else drawn with this seed
inline uint64_t slots[1024];

[[noreturn]] inline void fail(const char *what) {
    fprintf(stderr, "emulated kernel, block (%u, %u), thread %d: %s\n", blockIdx.x, blockIdx.y, current, what);
    abort();
}

inline void enter(void **fake, const void *bottom, size_t size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(fake, bottom, size);
#endif
}
inline void entered(void *fake, const void **bottom, size_t *size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, bottom, size);
#endif
}

inline void wait(State state) {
    Fiber &self = fibers[current];
    self.state = state;
    enter(state == DONE ? nullptr : &self.fake, scheduler_stack, scheduler_size);
    swapcontext(&self.context, &scheduler);
    entered(self.fake, &scheduler_stack, &scheduler_size);
}
inline void start() {
    entered(nullptr, &scheduler_stack, &scheduler_size);
    body(argument);
    wait(DONE);
}

inline void release(int first, int last, State state) {
    for (int i = first; i < last; i++)
        if (fibers[i].state != state) return;
    for (int i = first; i < last; i++) fibers[i].state = READY;
}

inline void run_block() {
    int n = blockDim.x;
    if ((int)fibers.size() < n) fibers.resize(n);
    for (int i = 0; i < n; i++) {
        Fiber &f = fibers[i];
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data(), f.context.uc_stack.ss_size = STACK, f.context.uc_link = nullptr;
        f.state = READY;
        makecontext(&f.context, start, 0);
    }
    for (;;) {
        int ready = 0, done = 0, next = -1;
        for (int i = 0; i < n; i++) ready += fibers[i].state == READY, done += fibers[i].state == DONE;
        if (done == n) return;
        if (!ready) fail("a barrier that some of its threads never reach");
        if (order > 1) order = (order * 1664525u + 1013904223u) | 2;
        int skip = order == 0 ? 0 : order == 1 ? ready - 1 : (order >> 8) % ready;
        for (int i = 0; i < n; i++)
            if (fibers[i].state == READY && skip-- == 0) next = i;
        current = next, threadIdx = dim3(next, 0, 0);
        enter(&scheduler_fake, fibers[next].stack.data(), STACK);
        swapcontext(&scheduler, &fibers[next].context);
        entered(scheduler_fake, nullptr, nullptr);
        release(next / 32 * 32, next / 32 * 32 + 32, AT_WARP);
        release(0, n, AT_BLOCK);
    }
}

inline std::map<const void *, size_t> &limits() {
    static std::map<const void *, size_t> of;
    return of;
}

template <class T> T from_lane(T mine, int lane) {
    static_assert(sizeof(T) <= 8);
    memcpy(&slots[current], &mine, sizeof(T));
    wait(AT_WARP);
    memcpy(&mine, &slots[current / 32 * 32 + lane], sizeof(T));
    wait(AT_WARP);
    return mine;
}

}  // namespace emulate

inline void __syncthreads() { emulate::wait(emulate::AT_BLOCK); }
inline void __syncwarp() { emulate::wait(emulate::AT_WARP); }
template <class T> T __shfl_xor_sync(unsigned, T x, int mask) {
    return emulate::from_lane(x, (emulate::current & 31) ^ mask);
}
inline int __any_sync(unsigned, int yes) {
    for (int i = 16; i; i /= 2) yes |= __shfl_xor_sync(~0u, yes, i);
    return yes;
}

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaFuncAttributes {};
using cudaStream_t = void *;
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline const char *cudaGetErrorString(cudaError_t e) { return e ? "invalid argument" : "no error"; }
template <class F> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, F *) { return cudaSuccess; }
template <class F> cudaError_t cudaFuncSetAttribute(F *f, cudaFuncAttribute, int bytes) {
    if ((size_t)bytes > MOST_SHARED) return cudaErrorInvalidValue;
    emulate::limits()[(const void *)f] = bytes;
    return cudaSuccess;
}
template <class A>
cudaError_t cudaLaunchKernel(void (*f)(A), dim3 grid, dim3 block, void **args, size_t bytes, cudaStream_t) {
    size_t most = emulate::limits().count((const void *)f) ? emulate::limits()[(const void *)f] : 48 << 10;
    if (bytes > most || block.x > 1024 || block.x % 32 || !grid.x || !grid.y || grid.y > 65535)
        return cudaErrorInvalidValue;
    static void (*kernel)(A);
    kernel = f, emulate::argument = args[0];
    emulate::body = [](void *argument) { kernel(*(A *)argument); };
    gridDim = grid, blockDim = block;
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(shared + bytes, sizeof shared - bytes);
#endif
    for (unsigned y = 0; y < grid.y; y++)
        for (unsigned x = 0; x < grid.x; x++) {
            blockIdx = dim3(x, y), memset(shared, 0xff, bytes);
            emulate::run_block();
        }
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(shared, sizeof shared);
#endif
    return cudaSuccess;
}

struct __nv_bfloat16 { uint16_t bits; };
struct __half { _Float16 x; };
inline float __half2float(__half x) { return (float)x.x; }
inline __half __float2half(float x) { return {(_Float16)x}; }
inline float __bfloat162float(__nv_bfloat16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}
inline __nv_bfloat16 __float2bfloat16(float x) {  // to nearest even
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return {0x7fff};
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major };
inline int row() { return (emulate::current & 31) >> 1; }  // of a sum, and of a: a lane's part
inline int col() { return (emulate::current & 1) * 8; }    // of a sum, and of b: the first of 8
inline float value(__half x) { return __half2float(x); }
inline float value(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment;
template <class T> struct fragment<matrix_a, 16, 16, 16, T, row_major> { float x[16]; };
template <class T, class Layout> struct fragment<matrix_b, 16, 16, 16, T, Layout> { float x[16][8]; };
template <> struct fragment<accumulator, 16, 16, 16, float> { float x[8]; };
using Sum = fragment<accumulator, 16, 16, 16, float>;

inline void check(const void *at, size_t pitch) {
    if ((uintptr_t)at % 32 || pitch % 16) emulate::fail("wmma needs pointers aligned to 32 bytes and rows to 16");
}
template <class T> void load_matrix_sync(fragment<matrix_a, 16, 16, 16, T, row_major> &f, const T *at, unsigned ld) {
    check(at, ld * sizeof(T));
    for (int k = 0; k < 16; k++) f.x[k] = value(at[row() * ld + k]);
}
template <class T> void load_matrix_sync(fragment<matrix_b, 16, 16, 16, T, row_major> &f, const T *at, unsigned ld) {
    check(at, ld * sizeof(T));
    for (int k = 0; k < 16; k++)
        for (int j = 0; j < 8; j++) f.x[k][j] = value(at[k * ld + col() + j]);
}
template <class T> void load_matrix_sync(fragment<matrix_b, 16, 16, 16, T, col_major> &f, const T *at, unsigned ld) {
    check(at, ld * sizeof(T));
    for (int k = 0; k < 16; k++)
        for (int j = 0; j < 8; j++) f.x[k][j] = value(at[(col() + j) * ld + k]);
}
inline void load_matrix_sync(Sum &f, const float *at, unsigned ld, layout_t) {
    check(at, ld * 4);
    for (int j = 0; j < 8; j++) f.x[j] = at[row() * ld + col() + j];
}
inline void store_matrix_sync(float *at, const Sum &f, unsigned ld, layout_t) {
    check(at, ld * 4);
    for (int j = 0; j < 8; j++) at[row() * ld + col() + j] = f.x[j];
}
inline void fill_fragment(Sum &f, float x) {
    for (float &e : f.x) e = x;
}
template <class A, class B> void mma_sync(Sum &d, const A &a, const B &b, const Sum &c) {
    d = c;
    for (int k = 0; k < 16; k++)
        for (int j = 0; j < 8; j++) d.x[j] += a.x[k] * b.x[k][j];
}

}  // namespace nvcuda::wmma

extern "C" __attribute__((visibility("default"))) void emulate_order(unsigned order) { emulate::order = order; }
