// Computes the linear cross-entropy and its gradients, written for any instruction set T:
//
//     z = h w^T,   lse = ln sum_v e^(z_v),   nll = lse - z_y,   dh = (softmax(z) - onehot(y)) w,   dw likewise
//
// It has the form of attention, softmax(A B^T) B, and is computed for one block of B at a time, so that the logits z
// are never stored. p stands for e^z relative to a shift:
//
//     rows:   A = h, B = w. p = 2^(z log2(e) - shift). One pass over B sums p and p B, which give lse and dh.
//     words:  A = w, B = h. p = g e^(z - lse). One pass over B sums p B, which is dw.
//
// Tasks write to different rows of the results, so threads need no locks. A is stored by rows. B is packed in two
// layouts, because it is the vector operand of both products. `scores` reads panels of WIDTH rows of B, with a row per
// lane. `accumulate` reads panels with a column per lane. In both, PAIR neighbours along the sum share a lane. A result
// depends only on its own row and on the order of B, so the number of tasks and threads changes no bit.
//
// The file of each instruction set includes this one under its own target pragma. So everything here must be static.
#pragma once
#include <cmath>
#include <cstring>

#include "kernels.h"

// The tiles below are arrays that must stay in registers. So every index into them must be a compile-time constant.
#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))  // so that each loop nest has all registers

namespace {

constexpr float LOG2E = 1.44269504088896341f;
constexpr double LN2 = 0.693147180559945309;
constexpr double BITS = 1 / (double)LOG2E;  // nats a bit, by the rounded LOG2E, so that its error cancels
constexpr int64_t RUN = 128;  // products of fp32 that are added up one after another: sums of runs round less than one
constexpr float SLACK = 20;  // sums are rescaled when a score exceeds the running maximum by this many bits

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

INLINE float from_bits(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
INLINE uint32_t to_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
INLINE uint16_t bf16(float f) {  // to nearest, ties to even
    uint32_t u = to_bits(f);
    uint32_t quiet = u >> 16 | 0x40, near = (u + 0x7FFF + (u >> 16 & 1)) >> 16;
    return (u & 0x7FFFFFFF) > 0x7F800000 ? quiet : near;
}
INLINE float widen(uint16_t b) { return from_bits(uint32_t(b) << 16); }

INLINE void put(uint16_t *to, float f) { *to = bf16(f); }
INLINE void put(float *to, float f) { *to = f; }
INLINE float get(uint16_t b) { return widen(b); }
INLINE float get(float f) { return f; }

// out[0..n) = row `row` of src, in the type of the products.
template <class E>
void convert(E *out, const void *src, bool is_bf16, bool round, int64_t row, int64_t n) {
    const uint16_t *b = (const uint16_t *)src + row * n;
    const float *f = (const float *)src + row * n;
    if (is_bf16) {
        if (sizeof(E) == 2) memcpy(out, b, n * 2);
        else for (int64_t i = 0; i < n; i++) put(out + i, widen(b[i]));
    } else if (round) {
        for (int64_t i = 0; i < n; i++) put(out + i, widen(bf16(f[i])));
    } else {
        for (int64_t i = 0; i < n; i++) put(out + i, f[i]);
    }
}

// Convert rows begin..begin+n of src to E. Zeros fill up n rows to `padded`, and D columns to K.
template <class E>
void convert_rows(E *out, const void *src, bool is_bf16, bool round, int64_t begin, int64_t n, int64_t padded,
                  int64_t D, int64_t K) {
    for (int64_t i = 0; i < padded; i++, out += K) {
        if (i < n) convert(out, src, is_bf16, round, begin + i, D);
        memset(out + (i < n ? D : 0), 0, (K - (i < n ? D : 0)) * sizeof(E));
    }
}

void write_row(void *dst, bool is_bf16, int64_t row, int64_t n, const float *src) {
    if (!is_bf16) memcpy((float *)dst + row * n, src, n * 4);
    else for (int64_t i = 0; i < n; i++) ((uint16_t *)dst + row * n)[i] = bf16(src[i]);
}

// Take pieces of memory from `base` on. Without memory (base is null), only their size in bytes is counted.
struct Scratch {
    size_t bytes = 0;
    template <class U>
    U *take(char *base, int64_t n) {
        U *at = (U *)(base + bytes);
        bytes += up(n * sizeof(U), 64);
        return at;
    }
};

template <class T>
INLINE float total(typename T::F x) {
    float lanes[T::LANES], sum = 0;
    T::store(lanes, x);
    for (float l : lanes) sum += l;
    return sum;
}

template <class T>
struct Attend : Scratch {
    typedef typename T::E E;  // type of the products
    typedef typename T::F F;  // vector of floats
    static constexpr int ROWS = T::ROWS, VECS = T::VECS, LANES = T::LANES, PAIR = T::PAIR, WIDTH = VECS * LANES;
    static constexpr int TALL = 2 * ROWS, SLIM = VECS / 2, STRIP = SLIM * LANES;  // tile of dw: columns of h; words
    static constexpr int64_t GROUP = 8 * ROWS;  // rows of A whose p fit in the cache together

    // Sizes and scratch memory of one task.
    int64_t D, K, Dp, block, rows, total;  // total: rows of B
    bool both;                             // B is packed in both layouts
    E *a, *x, *b1, *b2, *p;
    float *out, *sums, *totals, *shift, *col_lse, *col_low, *col_grad, *mine, *mine_at;
    int64_t *hit;

    // Memory of c.count rows between the pass that computes their p and the sum over them that gives dw.
    struct Kept : Scratch {
        int64_t rows;
        E *p, *x;                        // panels of words, PAIR rows per lane; h^T (D, rows) times g / sum of p
        float *shift_at, *shift, *rest;  // (blocks, rows): shift of p; final shift; gradient of the target's score
    };
    static Kept kept(const Lce &c, int64_t block) {
        Kept k = {};
        k.rows = up(c.count, ROWS);
        k.p = k.template take<E>(c.kept, up(c.V, WIDTH) * k.rows), k.x = k.template take<E>(c.kept, c.D * k.rows);
        k.shift_at = k.template take<float>(c.kept, (c.V + block - 1) / block * k.rows);
        k.shift = k.template take<float>(c.kept, k.rows), k.rest = k.template take<float>(c.kept, k.rows);
        return k;
    }

    Attend(const Lce &c, char *base) {
        D = c.D, K = up(D, PAIR), Dp = up(D, LANES), rows = up(c.step, ROWS);
        total = c.words ? c.n : c.V, both = c.words || c.dh;
        // A block has at most 256 rows. Both of its layouts fit in half of an L2 cache of 1 MB.
        block = up(least(256, (int64_t)(3 << 16) / (K * sizeof(E)) + 1), WIDTH);
        a = take<E>(base, rows * K), out = take<float>(base, rows * Dp), sums = take<float>(base, rows * LANES);
        totals = take<float>(base, rows * LANES), shift = take<float>(base, rows), x = take<E>(base, block * K);
        p = take<E>(base, GROUP * block);
        col_lse = take<float>(base, block), col_grad = take<float>(base, block), col_low = take<float>(base, block);
        mine = take<float>(base, rows), mine_at = take<float>(base, rows);
        hit = take<int64_t>(base, block > c.count ? block : c.count);
    }

    // sum += n columns of (N rows of a) times n packed vectors.
    template <int N, int C, bool FETCH>
    INLINE void add(F (&sum)[N][C], const E *a, int64_t K, int64_t n, const E *b, const char *next) {
        for (int64_t k = 0; k < n; k += PAIR, b += C * LANES * PAIR) {
            typename T::X v[C];
            if (FETCH) __builtin_prefetch(next, 0, 2), next += 64;
            UNROLL for (int c = 0; c < C; c++) v[c] = T::vector(b + c * LANES * PAIR);
            UNROLL for (int r = 0; r < N; r++) {
                typename T::X s = T::broadcast(a + r * K + k);
                UNROLL for (int c = 0; c < C; c++) sum[r][c] = T::dot(sum[r][c], s, v[c]);
            }
        }
    }

    // sum = (N rows of a) times (a panel of C packed vectors of columns). With FETCH each step also prefetches one
    // cache line, from `next` on. Long rows of fp32 have a branch of their own, or short ones lack registers: where both
    // shared their sums, short rows took a fifth longer.
    template <int N, int C, bool FETCH = false>
    INLINE void product(F (&sum)[N][C], const E *a, int64_t K, const E *b, const char *next = nullptr) {
        UNROLL for (int r = 0; r < N; r++)
            UNROLL for (int c = 0; c < C; c++) sum[r][c] = T::set1(0);
        if constexpr (PAIR == 1)
            if (K > RUN) {
                F whole[N][C];
                UNROLL for (int r = 0; r < N; r++)
                    UNROLL for (int c = 0; c < C; c++) whole[r][c] = T::set1(0);
                for (int64_t k = 0; k < K; k += RUN, b += RUN * C * LANES, next += FETCH ? RUN * 64 : 0) {
                    add<N, C, FETCH>(sum, a + k, K, least(RUN, K - k), b, next);
                    UNROLL for (int r = 0; r < N; r++)
                        UNROLL for (int c = 0; c < C; c++) whole[r][c] += sum[r][c], sum[r][c] = T::set1(0);
                }
                UNROLL for (int r = 0; r < N; r++)
                    UNROLL for (int c = 0; c < C; c++) sum[r][c] = whole[r][c];
                return;
            }
        add<N, C, FETCH>(sum, a, K, K, b, next);
    }

    // Raise the shift of row r by d. Its sums so far are multiplied by 2^-d, which is exact.
    NOINLINE __attribute__((cold)) void raise(int64_t r, int64_t group, int64_t col, bool dh, float d) {
        float scale = d > 126 ? 0 : exp2f(-d);
        shift[r] += d;
        for (int i = 0; i < LANES; i++) sums[r * LANES + i] *= scale, totals[r * LANES + i] *= scale;
        if (!dh) return;
        for (int64_t i = 0; i < Dp; i++) out[r * Dp + i] *= scale;
        for (int64_t i = 0; i < col; i++) put(p + (r - group) * block + i, get(p[(r - group) * block + i]) * scale);
    }

    // p of ROWS rows from r0 on and of the panel at column col, relative to the shift of each row.
    template <bool TAIL>
    NOINLINE void scores_by_row(int64_t r0, int64_t group, int64_t col, int64_t left, bool first, bool dh,
                                const char *next) {
        F t[ROWS][VECS];
        if (next) product<ROWS, VECS, true>(t, a + r0 * K, K, b1 + col * K, next);
        else product(t, a + r0 * K, K, b1 + col * K);
        if (TAIL)
            UNROLL for (int r = 0; r < ROWS; r++)
                UNROLL for (int c = 0; c < VECS; c++) t[r][c] = T::keep(t[r][c], left - c * LANES);
        if (__builtin_expect(first, 0))
            UNROLL for (int r = 0; r < ROWS; r++) {
                F m = t[r][0];
                UNROLL for (int c = 1; c < VECS; c++) m = T::max(m, t[r][c]);
                shift[r0 + r] = ceilf(T::highest(m) * LOG2E);
            }
        F worst = T::set1(-INFINITY);
        UNROLL for (int r = 0; r < ROWS; r++) {
            F s = T::set1(shift[r0 + r]);
            UNROLL for (int c = 0; c < VECS; c++) {
                t[r][c] = T::fmsub(t[r][c], T::set1(LOG2E), s);
                worst = T::max(worst, t[r][c]);
            }
        }
        if (__builtin_expect(T::any_above(worst, SLACK), 0))
            UNROLL for (int r = 0; r < ROWS; r++) {
                F m = t[r][0];
                UNROLL for (int c = 1; c < VECS; c++) m = T::max(m, t[r][c]);
                float d = ceilf(T::highest(m));
                if (!(d > SLACK)) continue;
                raise(r0 + r, group, col, dh, d);
                UNROLL for (int c = 0; c < VECS; c++) t[r][c] -= T::set1(d);
            }
        UNROLL for (int r = 0; r < ROWS; r++) {
            float *sum = sums + (r0 + r) * LANES;
            F s = T::load(sum);
            UNROLL for (int c = 0; c < VECS; c++) {
                t[r][c] = T::exp2(t[r][c]);
                s += t[r][c];
            }
            T::store(sum, s);
            if (dh) T::store_p(p + (r0 + r - group) * block + col, t[r]);
        }
    }

    // p of ROWS rows from r0 on and of the panel at column col, relative to the lse of each column, times its gradient.
    NOINLINE void scores_by_column(int64_t r0, int64_t group, int64_t col) {
        F t[ROWS][VECS];
        product(t, a + r0 * K, K, b1 + col * K);
        UNROLL for (int r = 0; r < ROWS; r++) {
            UNROLL for (int c = 0; c < VECS; c++) {
                F z = t[r][c] - T::load(col_lse + col + c * LANES) - T::load(col_low + col + c * LANES);
                t[r][c] = T::exp2(z * T::set1(LOG2E)) * T::load(col_grad + col + c * LANES);
            }
            T::store_p(p + (r0 + r - group) * block + col, t[r]);
        }
    }

    // out += p b for ROWS rows and C vectors of columns of out.
    template <int C>
    INLINE void accumulate(float *out, int64_t Dp, const E *p, int64_t block, const E *b, int64_t k) {
        F acc[ROWS][C];
        UNROLL for (int r = 0; r < ROWS; r++)
            UNROLL for (int c = 0; c < C; c++) acc[r][c] = T::set1(0);
        for (int64_t i = 0; i < k; i += PAIR, b += C * LANES * PAIR) {
            typename T::X v[C];
            UNROLL for (int c = 0; c < C; c++) v[c] = T::vector(b + c * LANES * PAIR);
            UNROLL for (int r = 0; r < ROWS; r++) {
                typename T::X s = T::broadcast(p + r * block + i);
                UNROLL for (int c = 0; c < C; c++) acc[r][c] = T::dot(acc[r][c], s, v[c]);
            }
        }
        UNROLL for (int r = 0; r < ROWS; r++)
            UNROLL for (int c = 0; c < C; c++) {  // sums per block, then over blocks, round less than one sum
                float *o = out + r * Dp + c * LANES;
                T::store(o, T::load(o) + acc[r][c]);
            }
    }

    NOINLINE void accumulate_all(int64_t r0, int64_t group, int64_t k) {
        for (int64_t d = 0; d < Dp; d += WIDTH) {
            float *o = out + r0 * Dp + d;
            const E *q = p + (r0 - group) * block, *b = b2 + d * k;
            switch (least(VECS, (Dp - d) / LANES)) {
                case 1: accumulate<1>(o, Dp, q, block, b, k); break;
                case 2: accumulate<2>(o, Dp, q, block, b, k); break;
                case 3: accumulate<3>(o, Dp, q, block, b, k); break;
                default: accumulate<VECS>(o, Dp, q, block, b, k);
            }
        }
    }

    // p - 1 of a target, by expm1, which is exact also where p is near 1. The target's score is the product of row r of
    // a and x.
    float target(int64_t r, const E *x, double lse, float *score) {
        float z = 0;
        for (int64_t begin = 0; begin < D; begin += RUN) {
            float sum = 0;
            for (int64_t d = begin; d < least(begin + RUN, D); d++) sum += get(a[r * K + d]) * get(x[d]);
            z += sum;
        }
        *score = z;
        z = z > lse ? 0 : z - lse;  // z may exceed lse by rounding
        return expm1f(z);
    }

    // Point b1 and b2 to the two layouts of block i of B.
    void unpack(const Lce &c, int64_t i) {
        b1 = (E *)c.packed + i * block * (K + (both ? Dp : 0)), b2 = b1 + block * K;
    }

    // Pack block i of B in the layouts of the products.
    void run_pack(const Lce &c, int64_t i) {
        int64_t begin = i * block, n = least(block, total - begin), k = up(n, WIDTH);
        convert_rows(x, c.words ? c.h : c.w, c.words ? c.h_bf16 : c.w_bf16, c.round, begin, n, k, D, K);
        unpack(c, i);
        struct Pair { E e[PAIR]; } *to = (Pair *)b1;
        for (int64_t panel = 0; panel < k; panel += WIDTH)
            for (int64_t i = 0; i < K / PAIR; i++)
                for (int64_t j = 0; j < WIDTH; j++) *to++ = ((const Pair *)(x + (panel + j) * K))[i];
        if (!both) return;
        E *o = b2;
        for (int64_t d = 0; d < Dp; d += WIDTH) {
            int64_t width = least(WIDTH, Dp - d), live = least(width, D - d);
            for (int64_t i = 0; i < k; i += PAIR, o += width * PAIR) {
                const E *in = x + i * K + d;
                for (int64_t j = 0; j < live; j++)
                    for (int e = 0; e < PAIR; e++) o[j * PAIR + e] = in[e * K + j];
                memset(o + live * PAIR, 0, (width - live) * PAIR * sizeof(E));
            }
        }
    }

    // Store p of n rows of a group and of k words from v on. The first row is row q of the stored ones.
    NOINLINE void keep_p(const Kept &kept, int64_t q, int64_t n, int64_t v, int64_t k) {
        for (int64_t col = 0; col < k; col += STRIP) {
            E *to = kept.p + (v + col) * kept.rows + q * STRIP;
            for (int64_t r = 0; r < n; r += PAIR) T::keep_rows(to + r * STRIP, p + r * block + col, block);
        }
    }

    void run_rows(const Lce &c, int64_t begin, int64_t end) {
        int64_t n = end - begin, padded = up(n, ROWS);
        bool dh = c.dh != nullptr;
        Kept kept = {};
        int64_t q = begin - c.first;  // index of the first of these rows among the stored ones
        if (c.kept) kept = this->kept(c, block);
        convert_rows(a, c.h, c.h_bf16, c.round, begin, n, padded, D, K);
        memset(sums, 0, padded * LANES * 4);
        memset(totals, 0, padded * LANES * 4);
        if (dh) memset(out, 0, padded * Dp * 4);
        for (int64_t v = 0; v < c.V; v += block) {
            int64_t nb = least(block, c.V - v), k = up(nb, WIDTH);
            unpack(c, v / block);
            int64_t size = block * (K + (both ? Dp : 0)) * sizeof(E);  // the next block is not in the cache:
            const char *next = (const char *)b1 + size, *far = next + size;  // it is prefetched during the first group
            for (int64_t g = 0; g < padded; g += GROUP) {
                int64_t stop = least(g + GROUP, padded);
                for (int64_t col = 0; col < k; col += WIDTH)
                    for (int64_t r = g; r < stop; r += ROWS, next += K / PAIR * 64) {
                        bool first = v + col == 0;
                        const char *fetch = next < far ? next : nullptr;
                        if (nb - col < WIDTH) scores_by_row<true>(r, g, col, nb - col, first, dh, fetch);
                        else scores_by_row<false>(r, g, col, WIDTH, first, dh, fetch);
                    }
                for (int64_t i = g * LANES; i < stop * LANES; i++) totals[i] += sums[i], sums[i] = 0;
                if (!dh) continue;
                for (int64_t r = g; r < least(stop, n); r++) {  // the target is added at the end
                    int64_t col = c.y[begin + r] - v;
                    if (col < 0 || col >= nb) continue;
                    mine[r] = get(p[(r - g) * block + col]), mine_at[r] = shift[r];
                    put(p + (r - g) * block + col, 0);
                }
                for (int64_t r = g; r < stop; r += ROWS) accumulate_all(r, g, k);
                if (!c.kept) continue;
                keep_p(kept, q + g, stop - g, v, k);
                memcpy(kept.shift_at + v / block * kept.rows + q + g, shift + g, (stop - g) * 4);
            }
        }
        for (int64_t i = 0; i < n; i++) {
            double sum = 0;
            float score, *o = out + i * Dp;
            for (int j = 0; j < LANES; j++) sum += totals[i * LANES + j];
            convert(x, c.w, c.w_bf16, c.round, c.y[begin + i], D);
            double bits = shift[i] + log2(sum), lse = sizeof(E) == 4 ? bits * BITS : float(bits * LN2);
            c.lse[begin + i] = lse;
            float rest = target(i, x, lse, &score), scale = float(1 / sum);
            c.nll[begin + i] = score > lse ? 0 : lse - score;
            if (!dh) continue;
            if (sizeof(E) == 4) {  // by the very p that is in the sum: where it is near 1, its rest is exact
                double less = mine[i] * exp2(mine_at[i] - shift[i]) / sum - 1;  // p - 1
                if (less > 0) less = 0;                                         // by rounding
                rest = less;
                if (less > -0.5) {
                    c.nll[begin + i] = -log1p(less);
                    c.lse[begin + i] = score - log1p(less);
                }
            }
            float g = c.grad ? c.grad[begin + i] : 1;
            for (int64_t d = 0; d < D; d++) o[d] = (o[d] * scale + rest * get(x[d])) * g;
            write_row(c.dh, c.h_bf16, begin + i, D, o);
            if (!c.kept) continue;
            kept.shift[q + i] = shift[i], kept.rest[q + i] = rest * g;
            for (int64_t d = 0; d < D; d++) put(kept.x + d * kept.rows + q + i, get(a[i * K + d]) * (scale * g));
        }
        if (!c.kept) return;
        for (int64_t i = n; i < padded; i++)
            for (int64_t d = 0; d < D; d++) put(kept.x + d * kept.rows + q + i, 0);
        T::publish();
    }

    void run_words(const Lce &c, int64_t begin, int64_t end) {
        int64_t n = end - begin, padded = up(n, ROWS);
        convert_rows(a, c.w, c.w_bf16, c.round, begin, n, padded, D, K);
        memset(out, 0, padded * Dp * 4);
        for (int64_t v = 0; v < c.n; v += block) {
            int64_t nb = least(block, c.n - v), k = up(nb, WIDTH);
            unpack(c, v / block);
            for (int64_t i = 0; i < k; i++) {
                col_lse[i] = i < nb ? float(c.lse[v + i]) : INFINITY;
                col_low[i] = i < nb ? float(c.lse[v + i] - col_lse[i]) : 0;
                col_grad[i] = i < nb ? c.grad[v + i] : 0;
            }
            int64_t hits = 0;  // number of columns whose target is among these words
            for (int64_t i = 0; i < nb; i++)
                if (c.y[v + i] >= begin && c.y[v + i] < end) hit[hits++] = i;
            for (int64_t g = 0; g < padded; g += GROUP) {
                int64_t stop = least(g + GROUP, padded);
                for (int64_t col = 0; col < k; col += WIDTH)
                    for (int64_t r = g; r < stop; r += ROWS) scores_by_column(r, g, col);
                for (int64_t j = 0; j < hits; j++) {
                    int64_t i = hit[j], r = c.y[v + i] - begin;
                    float score;
                    if (r < g || r >= stop) continue;
                    convert(x, c.h, c.h_bf16, c.round, v + i, D);
                    put(p + (r - g) * block + i, col_grad[i] * target(r, x, c.lse[v + i], &score));
                }
                for (int64_t r = g; r < stop; r += ROWS) accumulate_all(r, g, k);
            }
        }
        for (int64_t i = 0; i < n; i++) write_row(c.dw, c.w_bf16, begin + i, D, out + i * Dp);
    }

    // sums (n, STRIP) += x p, for n columns of h (at most N) and STRIP words; = instead of += if `begins`.
    template <int N, bool FETCH>
    NOINLINE void add_words(float *sums, int64_t n, const E *x, int64_t rows, const E *p, const char *next, bool begins) {
        if constexpr (N > 1)
            if (n < N) return add_words<N - 1, FETCH>(sums, n, x, rows, p, next, begins);
        for (int i = 0; i < N * STRIP; i += 16) __builtin_prefetch(sums + i, 1);
        F t[N][SLIM];
        product<N, SLIM, FETCH>(t, x, rows, p, next);
        UNROLL for (int r = 0; r < N; r++)
            UNROLL for (int c = 0; c < SLIM; c++) {
                float *s = sums + r * STRIP + c * LANES;
                T::store(s, begins ? t[r][c] : T::load(s) + t[r][c]);
            }
    }

    void run_weight(const Lce &c, int64_t i) {
        Kept kept = this->kept(c, block);
        int64_t v = i * block, nb = least(block, c.V - v), k = up(nb, STRIP), hits = 0;
        for (int64_t q = 0; q < c.count; q++) {
            float d = kept.shift[q] - kept.shift_at[i * kept.rows + q];
            if (__builtin_expect(d != 0, 0)) lower(kept.p + v * kept.rows, kept.rows, q, k, d);
            int64_t y = c.y[c.first + q];
            if (y >= v && y < v + nb) hit[hits++] = q;
        }
        for (int64_t col = 0; col < k; col += STRIP) {
            const E *words = kept.p + (v + col) * kept.rows;
            float *sums = c.sums + (v + col) * D;
            const char *next = (const char *)(words + kept.rows * STRIP), *end = next + kept.rows * STRIP * sizeof(E);
            for (int64_t d = 0; d < D; d += TALL, next += kept.rows / PAIR * 64) {
                float *s = sums + d * STRIP;
                const E *x = kept.x + d * kept.rows;
                if (next < end) add_words<TALL, true>(s, least(TALL, D - d), x, kept.rows, words, next, c.begins);
                else add_words<TALL, false>(s, least(TALL, D - d), x, kept.rows, words, next, c.begins);
            }
            for (int64_t j = 0; j < hits; j++) {
                int64_t row = c.first + hit[j], at = c.y[row] - v - col;
                if (at < 0 || at >= STRIP) continue;
                convert(x, c.h, c.h_bf16, c.round, row, D);
                for (int64_t d = 0; d < D; d++) sums[d * STRIP + at] += kept.rest[hit[j]] * get(x[d]);
            }
            if (!c.ends) continue;
            for (int64_t j = 0; j < least(STRIP, nb - col); j++) {
                for (int64_t d = 0; d < D; d++) out[d] = sums[d * STRIP + j];
                write_row(c.dw, c.w_bf16, v + col + j, D, out);
            }
        }
    }

    // Multiply the stored p of row q by 2^-d, because the shift was raised by d after it was stored.
    NOINLINE __attribute__((cold)) void lower(E *words, int64_t rows, int64_t q, int64_t k, float d) {
        float scale = d > 126 ? 0 : exp2f(-d);
        E *at = words + q / PAIR * PAIR * STRIP + q % PAIR;
        for (int64_t col = 0; col < k; col += STRIP, at += rows * STRIP)
            for (int64_t j = 0; j < STRIP; j++) put(at + j * PAIR, get(at[j * PAIR]) * scale);
    }

    static LceSizes sizes(const Lce &c) {
        Attend a(c, nullptr);
        LceSizes s = {};
        s.scratch = a.bytes, s.blocks = (a.total + a.block - 1) / a.block, s.group = GROUP;
        s.packed = up(s.blocks * a.block * (a.K + (a.both ? a.Dp : 0)) * sizeof(E), 64);
        s.kept = kept(c, a.block).bytes, s.sums = up(up(c.V, WIDTH) * c.D * 4, 64);
        return s;
    }
    static void pack(const Lce &c, int64_t i, char *s) { Attend(c, s).run_pack(c, i); }
    static void rows_of(const Lce &c, int64_t begin, int64_t end, char *s) { Attend(c, s).run_rows(c, begin, end); }
    static void words_of(const Lce &c, int64_t begin, int64_t end, char *s) { Attend(c, s).run_words(c, begin, end); }
    static void weight(const Lce &c, int64_t i, char *s) { Attend(c, s).run_weight(c, i); }
};

}  // namespace
