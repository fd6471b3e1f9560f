// Computes the gate of SwiGLU and RMSNorm, and their gradients, one row at a time. Sums are fp32.
//
//     swiglu:    y = silu(g) u of rows (g, u);  du = dy silu(g),  dg = dy u s (1 + g (1 - s)),  s = 1 / (1 + exp(-g))
//     rms_norm:  y = x r w,  r = 1 / sqrt(mean(x^2) + eps);  dx = r (dy w) - x r^3 mean(dy w x),  dw = sum of dy x r
#pragma once
#include "linear_cross_entropy.h"

namespace {

template <class T>
struct Between {
    typedef typename T::F F;
    typedef typename T::U U;
    static constexpr int LANES = T::LANES;
    typedef uint16_t H __attribute__((vector_size(2 * LANES)));

    INLINE F load(const float *p) { return T::load(p); }
    INLINE F load(const uint16_t *p) {
        H h;
        memcpy(&h, p, sizeof h);
        return (F)(__builtin_convertvector(h, U) << 16);
    }
    INLINE void store(float *p, F x) { T::store(p, x); }
    INLINE void store(uint16_t *p, F x) {  // to nearest, ties to even
        U u = (U)x, near = (u + 0x7FFF + (u >> 16 & 1)) >> 16, number = (U)(x == x);
        H h = __builtin_convertvector((near & number) | ((u >> 16 | 0x40) & ~number), H);
        memcpy(p, &h, sizeof h);
    }
    // Copy the last n < LANES elements of a row, followed by zeros.
    template <class E>
    INLINE const E *padded(E *to, const E *from, int64_t n) {
        memset(to, 0, LANES * sizeof(E));
        memcpy(to, from, n * sizeof(E));
        return to;
    }

    template <class E>
    INLINE void swiglu(const E *g, const E *u, const E *dy, E *y, E *du) {
        F a = load(g), b = load(u), s = 1 / (1 + T::exp2(a * -LOG2E));
        if (!dy) return store(y, a * s * b);
        F d = load(dy);
        store(du, d * a * s), store(y, d * b * s * (1 + a * (1 - s)));
    }

    // x is (rows, 2 n). In the backward pass dy is (rows, n), and y receives dx (rows, 2 n).
    template <class E>
    static void swiglu_rows(const E *x, const E *dy, E *y, int64_t begin, int64_t end, int64_t n) {
        E a[LANES], b[LANES], d[LANES], e[LANES], f[LANES];
        for (int64_t r = begin; r < end; r++) {
            const E *g = x + r * 2 * n, *u = g + n, *up = dy ? dy + r * n : nullptr;
            E *to = y + r * (dy ? 2 * n : n);
            int64_t i = 0, left = n % LANES;
            for (; i + LANES <= n; i += LANES) swiglu(g + i, u + i, up ? up + i : up, to + i, to + n + i);
            if (!left) continue;
            swiglu(padded(a, g + i, left), padded(b, u + i, left), up ? padded(d, up + i, left) : up, e, f);
            memcpy(to + i, e, left * sizeof(E));
            if (up) memcpy(to + n + i, f, left * sizeof(E));
        }
    }
    static void swiglu_of(const Rows &c, int64_t begin, int64_t end) {
        if (c.bf16) swiglu_rows((const uint16_t *)c.x, (const uint16_t *)c.dy, (uint16_t *)c.y, begin, end, c.n);
        else swiglu_rows((const float *)c.x, (const float *)c.dy, (float *)c.y, begin, end, c.n);
    }

    // x is (rows, n), weight is (n), and n is a multiple of LANES. In the backward pass dy is (rows, n), y receives dx,
    // and dw (n) receives the sum over the rows of this task.
    static void rms_norm_of(const Rows &c, int64_t begin, int64_t end) {
        const float *w = (const float *)c.weight;
        float *dw = c.dw + begin / c.step * c.n;
        if (c.dy) memset(dw, 0, c.n * 4);
        for (int64_t r = begin; r < end; r++) {
            const float *x = (const float *)c.x + r * c.n, *dy = (const float *)c.dy + r * c.n;
            float *y = (float *)c.y + r * c.n;
            F squares = T::set1(0), dot = T::set1(0);
            for (int64_t i = 0; i < c.n; i += LANES) {
                F a = load(x + i);
                squares += a * a;
                if (c.dy) dot += a * load(dy + i) * load(w + i);
            }
            float inverse = 1 / sqrtf(total<T>(squares) / c.n + c.eps);
            if (!c.dy) {
                for (int64_t i = 0; i < c.n; i += LANES) store(y + i, load(x + i) * inverse * load(w + i));
                continue;
            }
            float along = total<T>(dot) / c.n * inverse * inverse * inverse;
            for (int64_t i = 0; i < c.n; i += LANES) {
                F a = load(x + i), d = load(dy + i);
                store(y + i, d * load(w + i) * inverse - a * along);
                store(dw + i, load(dw + i) + d * a * inverse);
            }
        }
    }
};

}  // namespace
