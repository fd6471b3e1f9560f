// The vector operations of both AVX-512 files. It must be included under a target pragma.
#pragma once
#include <immintrin.h>

#include "kernels_of.h"

namespace {

struct Avx512Base {
    typedef __m512 F;
    typedef uint32_t U __attribute__((vector_size(64)));
    typedef int32_t I __attribute__((vector_size(64)));
    static constexpr int ROWS = 6, VECS = 4, LANES = 16;  // 24 of 32 registers hold sums
    INLINE F set1(float x) { return _mm512_set1_ps(x); }
    INLINE F load(const float *p) { return _mm512_loadu_ps(p); }
    INLINE void store(float *p, F x) { _mm512_storeu_ps(p, x); }
    INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
    INLINE F fmsub(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
    INLINE float highest(F a) { return _mm512_reduce_max_ps(a); }
    INLINE bool any_above(F a, float x) { return _mm512_cmp_ps_mask(a, set1(x), _CMP_GT_OQ); }
    INLINE F keep(F a, int64_t n) {  // the first n lanes of a, then -inf
        __mmask16 m = n >= 16 ? 0xFFFF : n <= 0 ? 0 : (1u << n) - 1;
        return _mm512_mask_mov_ps(set1(-INFINITY), m, a);
    }
    INLINE U count() { return U{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }
    INLINE void multiply(U a, uint32_t m, U &high, U &low) {  // the 64-bit products a m
        __m512i x = (__m512i)a, y = _mm512_set1_epi32((int)m), even = _mm512_mul_epu32(x, y);
        __m512i odd = _mm512_mul_epu32(_mm512_shuffle_epi32(x, (_MM_PERM_ENUM)0xF5), y);
        high = (U)_mm512_mask_shuffle_epi32(odd, 0x5555, even, (_MM_PERM_ENUM)0xF5);
        low = (U)_mm512_mask_shuffle_epi32(even, 0xAAAA, odd, (_MM_PERM_ENUM)0xA0);
    }
    template <int DEGREE>
    INLINE F power(F t, const float *c) {  // 2^t: scalef applies 2^floor(t), reduce gives the rest, which is 0 at -inf
        F f = _mm512_reduce_ps(t, 1), q = set1(c[DEGREE - 1]);
        for (int i = DEGREE - 2; i >= 0; i--) q = _mm512_fmadd_ps(q, f, set1(c[i]));
        return _mm512_scalef_ps(_mm512_fmadd_ps(q, f, set1(1)), t);
    }
};

}  // namespace
