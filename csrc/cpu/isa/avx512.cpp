// The kernels for AVX-512, with products in fp32.
#include "kernels.h"
#if defined(__x86_64__)
#include "target.h"
TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include "avx512.h"

namespace {
struct Avx512 : Avx512Base {
    INLINE F broadcast(const float *p) { return set1(*p); }
    INLINE F dot(F sum, F a, F b) { return _mm512_fmadd_ps(a, b, sum); }
    INLINE F exp2(F t) { return power<5>(t, EXP2_5); }
};
}  // namespace

const Kernels avx512_kernels = KERNELS_OF<Fp32<Avx512>>;
TARGET_END
#else
const Kernels avx512_kernels = {};
#endif
