// Builds the table of kernels from the vector operations of an instruction set. It must be included under a target
// pragma.
#pragma once
#include "linear_cross_entropy.h"
#include "norm_and_gate.h"
#include "attention.h"

namespace {

// Polynomials for 2^f on [0, 1) that are 1 at 0, with the least maximal relative error (in the comments).
constexpr float EXP2_4[] = {0.693044845f, 0.241280207f, 0.0522424704f, 0.0134266867f};                // 2.9e-6
constexpr float EXP2_5[] = {0.693151312f, 0.24016445f, 0.0557999135f, 0.00901702974f, 0.00186713034f};  // 9e-8

// Products in fp32, from the vector operations of an instruction set.
template <class Vectors>
struct Fp32 : Vectors {
    typedef float E;
    typedef typename Vectors::F X;
    static constexpr int PAIR = 1, VECS = Vectors::VECS, LANES = Vectors::LANES;
    INLINE X vector(const E *p) { return Vectors::load(p); }
    INLINE void store_p(E *p, const X (&t)[VECS]) {
        for (int c = 0; c < VECS; c++) Vectors::store(p + c * LANES, t[c]);
    }
    INLINE void publish() {}
    INLINE void keep_rows(E *to, const E *p, int64_t) { memcpy(to, p, VECS / 2 * LANES * sizeof(E)); }
};

template <class T>
constexpr Kernels KERNELS_OF = {
    Attend<T>::sizes, Attend<T>::pack, Attend<T>::rows_of, Attend<T>::words_of, Attend<T>::weight,
    Between<T>::swiglu_of, Between<T>::rms_norm_of, Tile<T>::scratch, Tile<T>::head_of,
};

}  // namespace
