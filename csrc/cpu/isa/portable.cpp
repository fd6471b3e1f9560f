// The kernels for any other CPU, with products in fp32. The vector extension of GCC and Clang compiles them to SSE2,
// NEON or what else the target has.
#include "kernels_of.h"

namespace {
struct Portable {
    typedef float F __attribute__((vector_size(16)));
    typedef int32_t I __attribute__((vector_size(16)));
    typedef uint32_t U __attribute__((vector_size(16)));
    static constexpr int ROWS = 6, VECS = 2, LANES = 4;
    INLINE F set1(float x) { return F{x, x, x, x}; }
    INLINE F load(const float *p) { F x; memcpy(&x, p, sizeof x); return x; }
    INLINE void store(float *p, F x) { memcpy(p, &x, sizeof x); }
    INLINE F max(F a, F b) { return a > b ? a : b; }
    INLINE F fmsub(F a, F b, F c) { return a * b - c; }
    INLINE F broadcast(const float *p) { return set1(*p); }
    INLINE F dot(F sum, F a, F b) { return sum + a * b; }
    INLINE float highest(F a) {
        float m = -INFINITY;
        for (int i = 0; i < LANES; i++) m = a[i] > m ? a[i] : m;
        return m;
    }
    INLINE bool any_above(F a, float x) { return highest(a) > x; }
    INLINE F keep(F a, int64_t n) {  // the first n lanes of a, then -inf
        return F{0, 1, 2, 3} < set1(float(n)) ? a : set1(-INFINITY);
    }
    INLINE F exp2(F x) {
        F t = x > set1(-127) ? x : set1(-127);  // 2^-127 becomes 0; a NaN would too, so the last line restores it
        t = t < set1(127) ? t : set1(127);
        I e = __builtin_convertvector(t + 127, I);  // t + 127 >= 0, so truncation is floor
        F f = t - (__builtin_convertvector(e, F) - 127), q = set1(EXP2_5[4]);
        for (int i = 3; i >= 0; i--) q = q * f + EXP2_5[i];
        q = (q * f + 1) * (F)(e << 23);
        return x == x ? q : x;
    }
    INLINE U count() { return U{0, 1, 2, 3}; }
    INLINE void multiply(U a, uint32_t m, U &high, U &low) {  // the 64-bit products a m
        for (int i = 0; i < LANES; i++) {
            uint64_t x = uint64_t(a[i]) * m;
            high[i] = uint32_t(x >> 32), low[i] = uint32_t(x);
        }
    }
};
}  // namespace

const Kernels portable_kernels = KERNELS_OF<Fp32<Portable>>;
