// bf16 products with fp32 sums: 32 multiply-adds an instruction.
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
    static constexpr int64_t BLOCK = 256;
    INLINE X vector(const E *p) { return (X)_mm512_loadu_si512(p); }
    INLINE X broadcast(const E *p) {
        int32_t pair;
        memcpy(&pair, p, 4);
        return (X)_mm512_set1_epi32(pair);
    }
    INLINE F dot(F sum, X a, X b) { return _mm512_dpbf16_ps(sum, a, b); }
    INLINE F exp2(F t) { return power<4>(t, EXP2_4); }  // far below the rounding of p to bf16
    INLINE void store_p(E *p, const F (&t)[VECS]) {
        for (int c = 0; c < VECS; c += 2)
            _mm512_storeu_si512(p + c * LANES, (__m512i)_mm512_cvtne2ps_pbh(t[c + 1], t[c]));
    }
};
}  // namespace

const Kernels avx512_bf16_kernels = {Attend<Avx512Bf16>::scratch, Attend<Avx512Bf16>::rows_of, Attend<Avx512Bf16>::words_of, nullptr, nullptr};
TARGET_END
#else
const Kernels avx512_bf16_kernels = {};
#endif
