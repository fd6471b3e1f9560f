// fp32 products in the vector extension of GCC and Clang: SSE2, NEON, or whatever the target has.
#include "linear_cross_entropy.h"
#include "norm_and_gate.h"
#include "exp2.h"
#include "attention.h"

namespace {
struct Portable {
    typedef float E;
    typedef float F __attribute__((vector_size(16)));
    typedef int32_t I __attribute__((vector_size(16)));
    typedef uint32_t U __attribute__((vector_size(16)));
    typedef F X;
    static constexpr int ROWS = 6, VECS = 2, LANES = 4, PAIR = 1;
    static constexpr int64_t BLOCK = 256;
    INLINE F set1(float x) { return F{x, x, x, x}; }
    INLINE F load(const float *p) { F x; memcpy(&x, p, sizeof x); return x; }
    INLINE void store(float *p, F x) { memcpy(p, &x, sizeof x); }
    INLINE F add(F a, F b) { return a + b; }
    INLINE F sub(F a, F b) { return a - b; }
    INLINE F mul(F a, F b) { return a * b; }
    INLINE F max(F a, F b) { return a > b ? a : b; }
    INLINE F fmsub(F a, F b, F c) { return a * b - c; }
    INLINE X vector(const E *p) { return load(p); }
    INLINE X broadcast(const E *p) { return set1(*p); }
    INLINE F dot(F sum, X a, X b) { return sum + a * b; }
    INLINE float highest(F a) {
        float m = -INFINITY;
        for (int i = 0; i < LANES; i++) m = a[i] > m ? a[i] : m;
        return m;
    }
    INLINE bool any_above(F a, float x) { return highest(a) > x; }
    INLINE F keep(F a, int64_t n) {  // the first n lanes, -inf after them
        return F{0, 1, 2, 3} < set1(float(n)) ? a : set1(-INFINITY);
    }
    INLINE F exp2(F x) {
        F t = x > set1(-127) ? x : set1(-127);  // 2^-127 comes out as 0, and so would a NaN
        t = t < set1(127) ? t : set1(127);
        I e = __builtin_convertvector(t + 127, I);  // t + 127 >= 0, so the cut is the floor
        F f = t - (__builtin_convertvector(e, F) - 127), q = set1(EXP2_5[4]);
        for (int i = 3; i >= 0; i--) q = q * f + EXP2_5[i];
        q = (q * f + 1) * (F)(e << 23);
        return x == x ? q : x;
    }
    INLINE U count() { return U{0, 1, 2, 3}; }
    INLINE void multiply(U a, uint32_t m, U &high, U &low) {  // the 64 bits of a m
        for (int i = 0; i < LANES; i++) {
            uint64_t x = uint64_t(a[i]) * m;
            high[i] = uint32_t(x >> 32), low[i] = uint32_t(x);
        }
    }
    INLINE void store_p(E *p, const F (&t)[VECS]) {
        for (int c = 0; c < VECS; c++) store(p + c * LANES, t[c]);
    }
    INLINE void publish() {}
    INLINE void keep_rows(E *to, const E *p, int64_t) { memcpy(to, p, VECS / 2 * LANES * sizeof(E)); }
};
}  // namespace

const Kernels portable_kernels = {
    Attend<Portable>::sizes, Attend<Portable>::pack, Attend<Portable>::rows_of, Attend<Portable>::words_of, Attend<Portable>::weight,
    Between<Portable>::swiglu_of, Between<Portable>::rms_norm_of, Tile<Portable>::scratch, Tile<Portable>::head_of,
};
