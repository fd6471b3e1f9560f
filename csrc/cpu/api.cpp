// The C interface that kernels/native.py loads: which kernels this CPU runs, and tasks over threads.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "kernels.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

enum { PORTABLE, AVX2, AVX512, AVX512_BF16, ISAS };  // as kernels/native.py numbers them
enum { OK, BAD_TARGET, NO_MEMORY, BAD_ARGUMENT };
constexpr int64_t OUT_FLOATS = 1 << 18;  // fp32 sums a task holds: 1 MB

bool has(int isa) {
#if defined(__x86_64__)
    switch (isa) {
        case AVX512_BF16:
            if (!__builtin_cpu_supports("avx512bf16")) return false;  // and all that avx512 asks for
            [[fallthrough]];
        case AVX512:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        case AVX2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    }
#endif
    return isa == PORTABLE;
}

const Kernels &kernels(int isa, bool bf16) {
    if (isa == AVX512_BF16 && bf16) return avx512_bf16_kernels;
    if (isa == AVX512_BF16 || isa == AVX512) return avx512_kernels;
    return isa == AVX2 ? avx2_kernels : portable_kernels;
}

// do_task(i, scratch) for i in 0..tasks, taken in turn by threads that live for this call only, so that fork and exit
// find none; each has `bytes` of scratch.
template <class Task>
int run(int64_t tasks, size_t bytes, int threads, Task do_task) {
    if (threads > tasks) threads = (int)tasks;
    std::atomic<int64_t> next{0};
    auto work = [&] {
        char *scratch = (char *)aligned_alloc(64, (bytes + 63) / 64 * 64);
        for (int64_t i; scratch && (i = next++) < tasks;) do_task(i, scratch);
        free(scratch);
    };
    std::vector<std::thread> others;
    try {
        for (int i = 1; i < threads; i++) others.emplace_back(work);
    } catch (const std::exception &) {  // no more threads to be had: those there are do the work
    }
    work();
    for (auto &t : others) t.join();
    return next < tasks ? NO_MEMORY : OK;
}

int run_lce(Lce c, const Kernels &k, bool words, int threads) {
    int64_t total = words ? c.V : c.n, most = OUT_FLOATS / c.D + 1;
    c.step = total / (4 * threads) + 1;  // four tasks a thread even out what else runs on the machine,
    if (c.step < 192) c.step = 192;      // unless packing the other side would cost more than it brings
    if (c.step > most) c.step = most;
    if (c.step > total) c.step = total;
    return run((total + c.step - 1) / c.step, k.scratch(c), threads, [&](int64_t i, char *scratch) {
        int64_t begin = i * c.step, end = begin + c.step < total ? begin + c.step : total;
        (words ? k.words : k.rows)(c, begin, end, scratch);
    });
}

int check(const Lce &c, int isa, int threads) {
    if (isa < 0 || isa >= ISAS || !has(isa) || threads < 1 || c.n < 0 || c.D < 1 || c.V < 1) return BAD_ARGUMENT;
    for (int64_t i = 0; i < c.n; i++)
        if (c.y[i] < 0 || c.y[i] >= c.V) return BAD_TARGET;
    return OK;
}

}  // namespace

API int tdlm_abi() { return 3; }  // raised with every change of an argument; kernels/native.py asks for its own

API int tdlm_has(int isa) { return has(isa); }

API int tdlm_lce_forward(int isa, int threads, const void *h, int h_bf16, const void *w, int w_bf16, int round,
                         const int64_t *y, int64_t n, int64_t D, int64_t V, float *nll, float *lse, void *dh) {
    Lce c = {};
    c.h = h, c.h_bf16 = h_bf16, c.w = w, c.w_bf16 = w_bf16, c.round = round;
    c.y = y, c.n = n, c.D = D, c.V = V, c.nll = nll, c.lse = lse, c.dh = dh;
    int bad = check(c, isa, threads);
    return bad || !n ? bad : run_lce(c, kernels(isa, round), false, threads);
}

API int tdlm_lce_backward_weight(int isa, int threads, const void *h, int h_bf16, const void *w, int w_bf16,
                                 int round, const int64_t *y, int64_t n, int64_t D, int64_t V, const float *lse,
                                 const float *grad, void *dw) {
    Lce c = {};
    c.h = h, c.h_bf16 = h_bf16, c.w = w, c.w_bf16 = w_bf16, c.round = round;
    c.y = y, c.n = n, c.D = D, c.V = V, c.lse = (float *)lse, c.grad = grad, c.dw = dw;
    int bad = check(c, isa, threads);
    return bad ? bad : run_lce(c, kernels(isa, round), true, threads);
}

// Attention of B sequences of H heads; tensors, strides, valid, segments, rope and key as in kernels.h.
API int tdlm_attention(int isa, int threads, int backward, int bf16, int causal, const void *const *tensors,
                       const int64_t *strides, int64_t B, int64_t H, int64_t T, int64_t K, const uint8_t *valid,
                       const int64_t *segments, const float *rope, const uint32_t *key, int32_t threshold,
                       float keep_scale) {
    Attention c = {};
    if (isa < 0 || isa >= ISAS || !has(isa) || threads < 1 || B < 0 || H < 1 || T < 1 || K < 1 || (rope && K % 2))
        return BAD_ARGUMENT;
    memcpy(c.tensors, tensors, sizeof c.tensors), memcpy(c.strides, strides, sizeof c.strides);
    c.backward = backward, c.bf16 = bf16, c.causal = causal, c.H = H, c.T = T, c.K = K;
    c.valid = valid, c.segments = segments, c.rope = rope, c.key = key, c.threshold = threshold, c.keep_scale = keep_scale;
    const Kernels &k = kernels(isa, false);
    return run(B * H, k.head_scratch(c), threads, [&](int64_t i, char *scratch) { k.head(c, i, scratch); });
}
