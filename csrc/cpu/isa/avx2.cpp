// The kernels for AVX2 and FMA, with products in fp32.
#include "kernels.h"
#if defined(__x86_64__)
#include "target.h"
TARGET_BEGIN("avx2,fma")
#include <immintrin.h>

#include "kernels_of.h"

namespace {
struct Avx2 {
    typedef __m256 F;
    typedef uint32_t U __attribute__((vector_size(32)));
    typedef int32_t I __attribute__((vector_size(32)));
    static constexpr int ROWS = 6, VECS = 2, LANES = 8;  // 12 of 16 registers hold sums
    INLINE F set1(float x) { return _mm256_set1_ps(x); }
    INLINE F load(const float *p) { return _mm256_loadu_ps(p); }
    INLINE void store(float *p, F x) { _mm256_storeu_ps(p, x); }
    INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
    INLINE F fmsub(F a, F b, F c) { return _mm256_fmsub_ps(a, b, c); }
    INLINE F broadcast(const float *p) { return _mm256_broadcast_ss(p); }
    INLINE F dot(F sum, F a, F b) { return _mm256_fmadd_ps(a, b, sum); }
    INLINE float highest(F a) {
        float x[LANES], m = -INFINITY;
        store(x, a);
        for (float v : x) m = v > m ? v : m;
        return m;
    }
    INLINE bool any_above(F a, float x) { return _mm256_movemask_ps(_mm256_cmp_ps(a, set1(x), _CMP_GT_OQ)); }
    INLINE F keep(F a, int64_t n) {  // the first n lanes of a, then -inf
        F lane = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_blendv_ps(set1(-INFINITY), a, _mm256_cmp_ps(lane, set1(float(n)), _CMP_LT_OQ));
    }
    INLINE F exp2(F t) {
        t = max(set1(-127), _mm256_min_ps(set1(127), t));  // this order keeps a NaN; 2^-127 becomes 0
        F n = _mm256_floor_ps(t), f = t - n, q = set1(EXP2_5[4]);
        for (int i = 3; i >= 0; i--) q = _mm256_fmadd_ps(q, f, set1(EXP2_5[i]));
        __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
        return _mm256_fmadd_ps(q, f, set1(1)) * _mm256_castsi256_ps(e);
    }
    INLINE U count() { return U{0, 1, 2, 3, 4, 5, 6, 7}; }
    INLINE void multiply(U a, uint32_t m, U &high, U &low) {  // the 64-bit products a m
        __m256i x = (__m256i)a, y = _mm256_set1_epi32((int)m), even = _mm256_mul_epu32(x, y);
        __m256i odd = _mm256_mul_epu32(_mm256_shuffle_epi32(x, 0xF5), y);
        high = (U)_mm256_blend_epi32(_mm256_shuffle_epi32(even, 0xF5), odd, 0xAA);
        low = (U)_mm256_blend_epi32(even, _mm256_shuffle_epi32(odd, 0xA0), 0xAA);
    }
};
}  // namespace

const Kernels avx2_kernels = KERNELS_OF<Fp32<Avx2>>;
TARGET_END
#else
const Kernels avx2_kernels = {};
#endif
