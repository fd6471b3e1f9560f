// The C interface that kernels/cpu/library.py loads. It finds out which instruction sets the CPU has, cuts the work of
// a kernel into tasks, and runs the tasks on threads.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef _WIN32
#include <malloc.h>
#endif
#ifdef __unix__
#include <unistd.h>
#endif

#include "api.h"
#include "kernels.h"

namespace {

enum { PORTABLE, AVX2, AVX512, AVX512_BF16 };  // as kernels/cpu/library.py numbers them
enum { OK, BAD_TARGET, NO_MEMORY, BAD_ARGUMENT };
constexpr int64_t OUT_FLOATS = 1 << 18;  // fp32 sums per task: 1 MB
constexpr int64_t KEPT_BYTES = 48 << 20;  // stored p of a block of rows; two blocks are stored at a time

size_t whole(size_t bytes, size_t page) { return (bytes + page - 1) / page * page; }

#ifdef _WIN32  // whose C library has no aligned_alloc, and frees such memory by another function
char *allocate(size_t page, size_t bytes) { return (char *)_aligned_malloc(whole(bytes, page), page); }
void release(void *at) { _aligned_free(at); }
#else
char *allocate(size_t page, size_t bytes) { return (char *)aligned_alloc(page, whole(bytes, page)); }
void release(void *at) { free(at); }
#endif

struct Memory {
    char *at;
    explicit Memory(size_t bytes) : at(allocate(64, bytes)) {}
    ~Memory() { release(at); }
    Memory(const Memory &) = delete;
};

// Memory that is kept after a call. Every training step needs it, and new memory would cost a page fault per page. If
// another call is using it, a call allocates its own.
struct Lease {
    static constexpr size_t PAGE = 2 << 20;
    static std::atomic_flag used;
    static char *spare;
    static size_t spare_bytes;
    bool owner;
    char *at;
    explicit Lease(size_t bytes) : owner(!used.test_and_set()), at(nullptr) {
        if (owner && spare_bytes >= bytes) {
            at = spare;
            return;
        }
        if (owner) release(spare), spare = nullptr, spare_bytes = 0;
        bytes = whole(bytes, PAGE);
        at = allocate(PAGE, bytes);
#ifdef __linux__
        if (at) madvise(at, bytes, MADV_HUGEPAGE);
#endif
        if (owner && at) spare = at, spare_bytes = bytes;
    }
    ~Lease() {
        if (owner) used.clear();
        else release(at);
    }
    Lease(const Lease &) = delete;
};
std::atomic_flag Lease::used = ATOMIC_FLAG_INIT;
char *Lease::spare = nullptr;
size_t Lease::spare_bytes = 0;

#if defined(__x86_64__)
// Return the best instruction set that the CPU has and the operating system saves the registers of. By CPUID itself:
// __builtin_cpu_supports finds nothing where the compiler's run-time library has no table of it, as Zig's.
int best() {
    unsigned a, b, c, d, saved, high;
    if (__get_cpuid_max(0, nullptr) < 7) return PORTABLE;
    __cpuid(1, a, b, c, d);
    if (~c & (bit_FMA | bit_OSXSAVE | bit_AVX)) return PORTABLE;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    __cpuid_count(7, 0, a, b, c, d);
    if (~saved & 0x06 || ~b & bit_AVX2) return PORTABLE;
    if (~saved & 0xE6 || ~b & (bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL)) return AVX2;
    if (a < 1) return AVX512;
    __cpuid_count(7, 1, a, b, c, d);
    return a & 1 << 5 ? AVX512_BF16 : AVX512;
}
#else
int best() { return PORTABLE; }
#endif

bool has(int isa) {
    static const int most = best();
    return isa >= PORTABLE && isa <= most;
}

const Kernels &kernels(int isa, bool bf16) {
    if (isa == AVX512_BF16 && bf16) return avx512_bf16_kernels;
    if (isa == AVX512_BF16 || isa == AVX512) return avx512_kernels;
    return isa == AVX2 ? avx2_kernels : portable_kernels;
}

// A number of tasks that may start when every phase up to `after` has ended; -1 for at once.
struct Phase {
    int64_t tasks;
    int after;
    std::function<void(int64_t, char *)> task;
};

// GOMP_parallel of the OpenMP library that PyTorch uses. Its threads spin for milliseconds after every parallel region,
// so other threads would have to wait for a core. A forked child has none of these threads and must not call it.
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);
Parallel parallel = nullptr;
long parallel_process = 0;

#ifdef __unix__
long process() { return getpid(); }
#else
long process() { return 0; }
#endif

// Run the tasks of all phases in order, on the threads of OpenMP or on threads that end with this call. Each thread has
// `bytes` of scratch memory. No task waits for a later phase, so any number of threads can finish.
int run(const std::vector<Phase> &phases, size_t bytes, int threads) {
    int64_t total = 0, most = 1;
    std::vector<int64_t> begin;
    for (const Phase &p : phases) begin.push_back(total), total += p.tasks, most = p.tasks > most ? p.tasks : most;
    if (threads > most) threads = (int)most;
    std::atomic<int64_t> next{0};
    std::vector<std::atomic<int64_t>> left(phases.size());
    for (size_t i = 0; i < phases.size(); i++) left[i] = phases[i].tasks;
    auto work = [&] {
        Memory scratch(bytes);
        size_t phase = 0;
        int ended = -1;  // the last phase that is known to have ended
        for (int64_t i; scratch.at && (i = next++) < total;) {
            while (i - begin[phase] >= phases[phase].tasks) phase++;
            while (ended < phases[phase].after)
                if (left[ended + 1].load(std::memory_order_acquire)) std::this_thread::yield();
                else ended++;
            phases[phase].task(i - begin[phase], scratch.at);
            left[phase].fetch_sub(1, std::memory_order_release);
        }
    };
    if (threads > 1 && parallel && process() == parallel_process) {
        parallel([](void *w) { (*(decltype(work) *)w)(); }, &work, (unsigned)threads, 0);
        return next < total ? NO_MEMORY : OK;
    }
    std::vector<std::thread> others;
    try {
        for (int i = 1; i < threads; i++) others.emplace_back(work);
    } catch (const std::exception &) {  // no further thread can be started; the existing ones do the work
    }
    work();
    for (auto &t : others) t.join();
    return next < total ? NO_MEMORY : OK;
}

// A phase over `total` rows or words from `first` on, with c.step of them per task.
Phase sweep(const Lce &c, void (*of)(const Lce &, int64_t, int64_t, char *), int64_t first, int64_t total, int after) {
    return {(total + c.step - 1) / c.step, after, [=](int64_t i, char *scratch) {
        int64_t begin = first + i * c.step, end = begin + c.step < first + total ? begin + c.step : first + total;
        of(c, begin, end, scratch);
    }};
}

Phase over_blocks(const Lce &c, void (*of)(const Lce &, int64_t, char *), int64_t blocks, int after) {
    return {blocks, after, [=](int64_t i, char *scratch) { of(c, i, scratch); }};
}

int run_lce(Lce c, const Kernels &k, bool words, int threads) {
    c.words = words;
    int64_t total = words ? c.V : c.n, most = OUT_FLOATS / c.D + 1;
    c.step = total / (4 * threads) + 1;  // four tasks per thread balance the load of other programs,
    if (c.step < 192) c.step = 192;      // but a small task would spend its time on reading B
    if (c.step > most) c.step = most;
    if (c.step > total) c.step = total;
    LceSizes size = k.sizes(c);
    Memory packed(size.packed);
    if (!(c.packed = packed.at)) return NO_MEMORY;
    return run({over_blocks(c, k.pack, size.blocks, -1), sweep(c, words ? k.words : k.rows, 0, total, 0)},
               size.scratch, threads);
}

// Compute nll, lse, dh and dw in three products. p of two blocks of rows is stored at a time. While some threads finish
// the rows of one block, the others begin the next. Then dw of the first block is summed.
int run_lce_sum(Lce c, const Kernels &k, int threads) {
    c.count = c.n;
    c.step = 1;
    LceSizes size = k.sizes(c);
    int64_t most = KEPT_BYTES / (size.kept / c.n + 1) / size.group * size.group;
    if (most < size.group) most = size.group;
    int64_t count = (c.n + most - 1) / most, rows = (c.n + count - 1) / count;
    rows = (rows + size.group - 1) / size.group * size.group;
    count = (c.n + rows - 1) / rows;
    c.count = rows < c.n ? rows : c.n;
    c.step = (rows / size.group + threads - 1) / threads * size.group;
    if (c.step > 4 * size.group) c.step = 4 * size.group;
    size = k.sizes(c);
    int places = count > 1 ? 2 : 1;
    Lease lease(size.packed + size.sums + places * size.kept);
    char *at = lease.at;
    if (!at) return NO_MEMORY;
    c.packed = at, c.sums = (float *)(at + size.packed), at += size.packed + size.sums;
    auto block = [&](int64_t i) {
        Lce b = c;
        b.first = i * rows, b.count = c.n - b.first < rows ? c.n - b.first : rows;
        b.kept = at + i % 2 * size.kept, b.begins = i == 0, b.ends = i == count - 1;
        return b;
    };
    // pack, rows 0, rows 1, weight 0, rows 2, weight 1, ..., rows n - 1, weight n - 2, weight n - 1
    std::vector<Phase> phases = {over_blocks(c, k.pack, size.blocks, -1)};
    auto add_rows = [&](int64_t i) {
        Lce b = block(i);
        phases.push_back(sweep(b, k.rows, b.first, b.count, i < 2 ? 0 : (int)phases.size() - 1));
    };
    auto add_weight = [&](int64_t i) {
        int before = (int)phases.size() - (i < count - 1 ? 2 : 1);
        phases.push_back(over_blocks(block(i), k.weight, size.blocks, before));
    };
    add_rows(0);
    for (int64_t i = 1; i < count; i++) add_rows(i), add_weight(i - 1);
    add_weight(count - 1);
    return run(phases, size.scratch, threads);
}

int check(const Lce &c, int isa, int threads) {
    if (!has(isa) || threads < 1 || c.n < 0 || c.D < 1 || c.V < 1) return BAD_ARGUMENT;
    for (int64_t i = 0; i < c.n; i++)
        if (c.y[i] < 0 || c.y[i] >= c.V) return BAD_TARGET;
    return OK;
}

}  // namespace

API int tdlm_abi() { return 5; }  // increased when an argument changes; equal to _ABI in kernels/cpu/library.py

API void tdlm_use_threads_of(Parallel gomp_parallel) { parallel = gomp_parallel, parallel_process = process(); }

API int tdlm_has(int isa) { return has(isa); }

API int tdlm_lce_forward(int isa, int threads, const void *h, int h_bf16, const void *w, int w_bf16, int round,
                         const int64_t *y, int64_t n, int64_t D, int64_t V, float *nll, double *lse, void *dh) {
    Lce c = {};
    c.h = h, c.h_bf16 = h_bf16, c.w = w, c.w_bf16 = w_bf16, c.round = round;
    c.y = y, c.n = n, c.D = D, c.V = V, c.nll = nll, c.lse = lse, c.dh = dh;
    int bad = check(c, isa, threads);
    return bad || !n ? bad : run_lce(c, kernels(isa, round), false, threads);
}

API int tdlm_lce_backward_weight(int isa, int threads, const void *h, int h_bf16, const void *w, int w_bf16,
                                 int round, const int64_t *y, int64_t n, int64_t D, int64_t V, const double *lse,
                                 const float *grad, void *dw) {
    Lce c = {};
    c.h = h, c.h_bf16 = h_bf16, c.w = w, c.w_bf16 = w_bf16, c.round = round;
    c.y = y, c.n = n, c.D = D, c.V = V, c.lse = (double *)lse, c.grad = grad, c.dw = dw;
    int bad = check(c, isa, threads);
    return bad ? bad : run_lce(c, kernels(isa, round), true, threads);
}

// Compute sum_i grad_i nll_i forward and backward: dh and dw are the gradients of that sum.
API int tdlm_lce_sum(int isa, int threads, const void *h, int h_bf16, const void *w, int w_bf16, int round,
                     const int64_t *y, int64_t n, int64_t D, int64_t V, const float *grad, float *nll, double *lse,
                     void *dh, void *dw) {
    Lce c = {};
    c.h = h, c.h_bf16 = h_bf16, c.w = w, c.w_bf16 = w_bf16, c.round = round;
    c.y = y, c.n = n, c.D = D, c.V = V, c.nll = nll, c.lse = lse, c.dh = dh, c.grad = grad, c.dw = dw;
    int bad = check(c, isa, threads);
    return bad || !n ? bad : run_lce_sum(c, kernels(isa, round), threads);
}

// Compute SwiGLU, or RMSNorm if weight is not null. dy is null in the forward pass. dw is (tasks, n).
API int tdlm_rows(int isa, int threads, int bf16, const void *x, const void *dy, void *y, const float *weight, float *dw,
                  int64_t rows, int64_t n, int64_t step, float eps) {
    if (!has(isa) || threads < 1 || rows < 0 || n < 1 || step < 1) return BAD_ARGUMENT;
    if (weight && (bf16 || n % 16)) return BAD_ARGUMENT;
    Rows c = {x, dy, y, weight, dw, bf16 != 0, n, step, eps};
    const Kernels &k = kernels(isa, false);
    return run({{(rows + step - 1) / step, -1, [&](int64_t i, char *) {
        int64_t begin = i * step, end = begin + step < rows ? begin + step : rows;
        (weight ? k.rms_norm : k.swiglu)(c, begin, end);
    }}}, 64, threads);
}

// Compute attention for B sequences of H heads. The other arguments are those of struct Attention in kernels.h.
API int tdlm_attention(int isa, int threads, int backward, int bf16, int causal, const void *const *tensors,
                       const int64_t *strides, int64_t B, int64_t H, int64_t T, int64_t K, const uint8_t *valid,
                       const int64_t *segments, const float *rope, const uint32_t *key, int32_t threshold,
                       float keep_scale) {
    Attention c = {};
    if (!has(isa) || threads < 1 || B < 0 || H < 1 || T < 1 || K < 1 || (rope && K % 2)) return BAD_ARGUMENT;
    memcpy(c.tensors, tensors, sizeof c.tensors), memcpy(c.strides, strides, sizeof c.strides);
    c.backward = backward, c.bf16 = bf16, c.causal = causal, c.H = H, c.T = T, c.K = K;
    c.valid = valid, c.segments = segments, c.rope = rope, c.key = key, c.threshold = threshold, c.keep_scale = keep_scale;
    const Kernels &k = kernels(isa, false);
    return run({{B * H, -1, [&](int64_t i, char *scratch) { k.head(c, i, scratch); }}}, k.head_scratch(c), threads);
}
