// What both AVX-512 kernels share. Include under a target pragma.
#pragma once
#include <immintrin.h>

#include "attend.h"
#include "exp2.h"

namespace {

struct Avx512Base {
    typedef __m512 F;
    static constexpr int ROWS = 6, VECS = 4, LANES = 16;  // 24 sums of 32 registers
    INLINE F set1(float x) { return _mm512_set1_ps(x); }
    INLINE F load(const float *p) { return _mm512_loadu_ps(p); }
    INLINE void store(float *p, F x) { _mm512_storeu_ps(p, x); }
    INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
    INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
    INLINE F fmsub(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
    INLINE float highest(F a) { return _mm512_reduce_max_ps(a); }
    INLINE bool any_above(F a, float x) { return _mm512_cmp_ps_mask(a, set1(x), _CMP_GT_OQ); }
    INLINE F keep(F a, int64_t n) {  // the first n lanes, -inf after them
        __mmask16 m = n >= 16 ? 0xFFFF : n <= 0 ? 0 : (1u << n) - 1;
        return _mm512_mask_mov_ps(set1(-INFINITY), m, a);
    }
    template <int DEGREE>
    INLINE F power(F t, const float *c) {  // scalef takes the floor of t, reduce what is left: 0 at -inf
        F f = _mm512_reduce_ps(t, 1), q = set1(c[DEGREE - 1]);
        for (int i = DEGREE - 2; i >= 0; i--) q = _mm512_fmadd_ps(q, f, set1(c[i]));
        return _mm512_scalef_ps(_mm512_fmadd_ps(q, f, set1(1)), t);
    }
};

}  // namespace
