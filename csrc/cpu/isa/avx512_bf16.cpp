// The linear cross-entropy with products in bf16 and sums in fp32: 32 multiply-adds per instruction.
#include "kernels.h"
#if defined(__x86_64__)
#include "target.h"
TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#include "avx512.h"

namespace {
struct Avx512Bf16 : Avx512Base {
    typedef uint16_t E;
    typedef __m512bh X;
    static constexpr int PAIR = 2;
    INLINE X vector(const E *p) { return (X)_mm512_loadu_si512(p); }
    INLINE X broadcast(const E *p) {
        int32_t pair;
        memcpy(&pair, p, 4);
        return (X)_mm512_set1_epi32(pair);
    }
    INLINE F dot(F sum, X a, X b) { return _mm512_dpbf16_ps(sum, a, b); }
    INLINE F exp2(F t) { return power<4>(t, EXP2_4); }  // its error is far below the rounding of p to bf16
    INLINE void store_p(E *p, const F (&t)[VECS]) {
        for (int c = 0; c < VECS; c += 2)
            _mm512_storeu_si512(p + c * LANES, (__m512i)_mm512_cvtne2ps_pbh(t[c + 1], t[c]));
    }
    INLINE void publish() { _mm_sfence(); }  // makes the streamed stores visible before later ones
    // Interleave WIDTH / 2 words of two rows of p, which lie `step` apart. The stores bypass the cache, which is needed
    // for data that is read again sooner.
    INLINE void keep_rows(E *to, const E *p, int64_t step) {
        const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                             37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
        const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
        __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + step);
        _mm512_stream_si512((__m512i *)to, _mm512_permutex2var_epi16(a, low, b));
        _mm512_stream_si512((__m512i *)(to + 2 * LANES), _mm512_permutex2var_epi16(a, high, b));
    }
};
}  // namespace

const Kernels avx512_bf16_kernels = {
    Attend<Avx512Bf16>::sizes, Attend<Avx512Bf16>::pack, Attend<Avx512Bf16>::rows_of, Attend<Avx512Bf16>::words_of,
    Attend<Avx512Bf16>::weight,
    nullptr, nullptr, nullptr, nullptr,
};
TARGET_END
#else
const Kernels avx512_bf16_kernels = {};
#endif
