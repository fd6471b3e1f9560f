// fp32 products with AVX-512.
#include "kernels.h"
#if defined(__x86_64__)
#include "target.h"
TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include "avx512.h"

namespace {
struct Avx512 : Avx512Base {
    typedef float E;
    typedef F X;
    static constexpr int PAIR = 1;
    static constexpr int64_t BLOCK = 256;
    INLINE X vector(const E *p) { return load(p); }
    INLINE X broadcast(const E *p) { return set1(*p); }
    INLINE F dot(F sum, X a, X b) { return _mm512_fmadd_ps(a, b, sum); }
    INLINE F exp2(F t) { return power<5>(t, EXP2_5); }
    INLINE void store_p(E *p, const F (&t)[VECS]) {
        for (int c = 0; c < VECS; c++) store(p + c * LANES, t[c]);
    }
    INLINE void publish() {}
    INLINE void keep_rows(E *to, const E *p, int64_t) { memcpy(to, p, VECS / 2 * LANES * sizeof(E)); }
};
}  // namespace

const Kernels avx512_kernels = {
    Attend<Avx512>::sizes, Attend<Avx512>::pack, Attend<Avx512>::rows_of, Attend<Avx512>::words_of, Attend<Avx512>::weight,
    Between<Avx512>::swiglu_of, Between<Avx512>::rms_norm_of, Tile<Avx512>::scratch, Tile<Avx512>::head_of,
};
TARGET_END
#else
const Kernels avx512_kernels = {};
#endif
