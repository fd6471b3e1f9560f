// Computes the linear cross-entropy of kernels/ops/linear_cross_entropy.py on an NVIDIA GPU of compute capability 8.0
// or newer, without Triton. z = h W^T are the logits, which are never stored. There are three kernels:
//
//     forward   m, l = sum_v e^(z_v - m) and acc = sum_v e^(z_v - m) w_v, for each row and each part of the vocabulary
//     combine   lse = m + ln l,  nll = lse - h . w_y,  dh = acc / l - w_y, from the parts in their order
//     weight    dw_v = sum_i g_i (e^(z_iv - lse_i) - [v = y_i]) h_i
//
// softmax(h W^T) W is attention with Q = h and K = V = W, so forward is FlashAttention-2 (Dao 2023), split over the
// keys. m may be below the running maximum by up to LAG, as in FlashAttention-4, so that acc is rarely rescaled. weight
// is the same loop with h and W exchanged. Sums are fp32 and in a fixed order, without atomics, so every run gives the
// same bits.
#pragma once
#include "warp_matmul.h"

struct Lce {
    const void *h, *w;       // (N, D), (V, D) of the kernels' type
    const int64_t *y;        // (N); if one is not in 0..V-1, its nll and dh are NaN, and it is not used as an index
    const int64_t *n_rows;   // () or null: the number of rows that count
    int64_t N, V;
    int D, parts;            // parts of the vocabulary in forward, of the rows in weight
    bool vectors;            // every row of h and w begins at a multiple of 16 bytes
    float *m, *l, *acc;      // (parts, N), (parts, N), (parts, N, D); acc is null if dh is not needed
    float *nll, *lse;        // (N); 0 past the count
    void *dh;                // (N, D), fp32 or the kernels' type; 0 past the count
    const float *grad;       // (N)
    const float *top;        // () or null: max |grad|, by which gradients are scaled in fp16
    void *dw;                // (parts, V, D), fp32; with one part also the kernels' type
    bool fp32_out;           // whether dh and dw are fp32
};

constexpr int WARPS = 4, ROWS = 16 * WARPS;  // a warp computes 16 rows
constexpr float LOG2E = 1.4426950408889634f, LAG = 5.5f;

__device__ inline int64_t live(const Lce &c) {
    if (!c.n_rows) return c.N;
    int64_t n = *c.n_rows;
    return n < 0 ? 0 : n < c.N ? n : c.N;
}

// The shared memory of a block. Tile a stays, and tile b is replaced in each step. Each warp has a strip s, which holds
// its scores and then, in their place, their probabilities.
template <class T, int WIDTH> struct Tiles {
    static constexpr int COLS = WIDTH * sizeof(T) <= 512 ? 32 : 16;
    static constexpr int LD = WIDTH + 16 / sizeof(T);  // 16 bytes between rows avoid bank conflicts
    static constexpr int LDS = COLS + 4, LDP = LDS * sizeof(float) / sizeof(T);
    T a[ROWS][LD], b[COLS][LD];
    float s[WARPS][16][LDS];
    float lse[COLS], grad[COLS];
    int target[COLS];
};

// Load rows begin..begin + count of src (end, D), with 0 for elements outside of it.
template <int WIDTH, class T, int LD>
__device__ void load(T (*to)[LD], int count, const T *src, int64_t begin, int64_t end, const Lce &c) {
    constexpr int N = 16 / sizeof(T);
    int wide = (c.D + 15) / 16 * 16;
    for (int i = threadIdx.x; i < count * (WIDTH / N); i += blockDim.x) {
        int r = i / (WIDTH / N), d = i % (WIDTH / N) * N;
        if (d >= wide) continue;
        int64_t row = begin + r;
        if (c.vectors) {
            uint4 x = {0, 0, 0, 0};
            if (row < end && d < c.D) x = *(const uint4 *)(src + row * c.D + d);
            *(uint4 *)&to[r][d] = x;
        } else {
            for (int j = 0; j < N; j++)
                to[r][d + j] = row < end && d + j < c.D ? src[row * c.D + d + j] : rounded<T>(0);
        }
    }
}

// Compute the 16 rows of a bᵀ of this warp, into its strip.
template <class T, int WIDTH> __device__ void scores(Tiles<T, WIDTH> &t, int steps) {
    using P = Product<T>;
    using Shape = Tiles<T, WIDTH>;
    int warp = threadIdx.x >> 5;
    typename P::Sum s[Shape::COLS / 16];
#pragma unroll
    for (auto &x : s) P::zero(x);
    for (int k = 0; k < steps; k++) {
        typename P::A a;
        P::load(a, &t.a[warp * 16][k * 16], Shape::LD);
#pragma unroll
        for (int j = 0; j < Shape::COLS / 16; j++) {
            typename P::Transposed b;
            P::load(b, &t.b[j * 16][k * 16], Shape::LD);
            P::add(s[j], a, b);
        }
    }
#pragma unroll
    for (int j = 0; j < Shape::COLS / 16; j++) P::put(&t.s[warp][0][j * 16], s[j], Shape::LDS);
    __syncwarp();
}

// sum += p b, where p is the warp's strip in type T.
template <class T, int WIDTH>
__device__ void accumulate(typename Product<T>::Sum (&sum)[WIDTH / 16], const Tiles<T, WIDTH> &t, int steps) {
    using P = Product<T>;
    using Shape = Tiles<T, WIDTH>;
#pragma unroll
    for (int k = 0; k < Shape::COLS / 16; k++) {
        typename P::A p;
        P::load(p, (const T *)t.s[threadIdx.x >> 5] + k * 16, Shape::LDP);
#pragma unroll
        for (int d = 0; d < WIDTH / 16; d++) {
            if (d >= steps) break;
            typename P::B b;
            P::load(b, &t.b[k * 16][d * 16], Shape::LD);
            P::add(sum[d], p, b);
        }
    }
}

template <class T, int WIDTH> __global__ void __launch_bounds__(WARPS * 32) forward(Lce c) {
    extern __shared__ __align__(128) char shared[];
    using P = Product<T>;
    using Shape = Tiles<T, WIDTH>;
    auto &t = *(Shape *)shared;
    constexpr int MINE = Shape::COLS / 2;  // two lanes share a row, and each has every other column
    int64_t n = live(c), row0 = (int64_t)blockIdx.x * ROWS, part = blockIdx.y;
    if (row0 >= n) return;
    int warp = threadIdx.x >> 5, r = (threadIdx.x & 31) >> 1, odd = threadIdx.x & 1, steps = (c.D + 15) / 16;
    int64_t tiles = (c.V + Shape::COLS - 1) / Shape::COLS, last = (part + 1) * tiles / c.parts;
    float(*s)[Shape::LDS] = t.s[warp], m = -INFINITY, l = 0;
    T *p = (T *)s[r];
    typename P::Sum acc[WIDTH / 16];
#pragma unroll
    for (auto &x : acc) P::zero(x);
    load<WIDTH>(t.a, ROWS, (const T *)c.h, row0, n, c);
    for (int64_t j = part * tiles / c.parts; j < last; j++) {
        int64_t v0 = j * Shape::COLS;
        __syncthreads();  // all threads have read the previous tile
        load<WIDTH>(t.b, Shape::COLS, (const T *)c.w, v0, c.V, c);
        __syncthreads();
        scores(t, steps);
        float z[MINE], top = -INFINITY;
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            z[i] = v0 + 2 * i + odd < c.V ? s[r][2 * i + odd] : -INFINITY;
            top = fmaxf(top, z[i]);
        }
        top = fmaxf(top, __shfl_xor_sync(WARP, top, 1));
        bool raise = top > m + LAG;
        __syncwarp();  // all lanes have read their scores
        if (__any_sync(WARP, raise)) {
            float next = raise ? top : m, scale = m == next ? 1 : exp2f((m - next) * LOG2E);
            l *= scale, m = next;
            if (c.acc) {  // only put and get know which lane holds which element
#pragma unroll
                for (int d = 0; d < WIDTH / 16; d++) {
                    if (d >= steps) break;
                    P::put(s[0], acc[d], Shape::LDS);
                    __syncwarp();
#pragma unroll
                    for (int i = 0; i < 8; i++) s[r][2 * i + odd] *= scale;
                    __syncwarp();
                    P::get(acc[d], s[0], Shape::LDS);
                    __syncwarp();
                }
            }
        }
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            float e = exp2f((z[i] - m) * LOG2E);
            l += e;
            if (c.acc) p[2 * i + odd] = rounded<T>(e);
        }
        __syncwarp();
        if (c.acc) accumulate<T, WIDTH>(acc, t, steps);
    }
    int64_t row = row0 + warp * 16 + r, at = part * c.N + row;
    l += __shfl_xor_sync(WARP, l, 1);
    if (row < n && !odd) c.m[at] = m, c.l[at] = l;
    if (!c.acc) return;
#pragma unroll
    for (int d = 0; d < WIDTH / 16; d++) {
        if (d >= steps) break;
        __syncwarp();
        P::put(s[0], acc[d], Shape::LDS);
        __syncwarp();
        for (int i = odd; i < 16; i += 2)
            if (row < n && d * 16 + i < c.D) c.acc[at * c.D + d * 16 + i] = s[r][i];
    }
}

// One warp per row.
template <class T> __global__ void __launch_bounds__(WARPS * 32) combine(Lce c) {
    int64_t row = (int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5), n = live(c);
    int lane = threadIdx.x & 31;
    if (row >= c.N) return;
    float m = -INFINITY, l = 0, dot = 0;
    if (row < n) {
        for (int s = 0; s < c.parts; s++) m = fmaxf(m, c.m[s * c.N + row]);
        for (int s = 0; s < c.parts; s++) l += c.l[s * c.N + row] * exp2f((c.m[s * c.N + row] - m) * LOG2E);
    }
    int64_t y = row < n ? c.y[row] : -1;
    bool known = y >= 0 && y < c.V;
    const T *h = (const T *)c.h + row * c.D, *w = (const T *)c.w + (known ? y : 0) * c.D;
    if (known)
        for (int d = lane; d < c.D; d += 32) dot = fmaf(number(h[d]), number(w[d]), dot);
    for (int i = 16; i; i /= 2) dot += __shfl_xor_sync(WARP, dot, i);
    float lse = m + logf(l);
    if (!lane) {
        c.lse[row] = row < n ? lse : 0;
        c.nll[row] = row >= n ? 0 : known ? lse - dot : NAN;
    }
    for (int d = lane; c.acc && d < c.D; d += 32) {
        float sum = 0;
        if (row < n) {
            for (int64_t s = 0; s < c.parts; s++) {
                int64_t at = s * c.N + row;
                sum += c.acc[at * c.D + d] * exp2f((c.m[at] - m) * LOG2E);
            }
            sum = known ? sum / l - number(w[d]) : NAN;
        }
        if (c.fp32_out) ((float *)c.dh)[row * c.D + d] = sum;
        else ((T *)c.dh)[row * c.D + d] = rounded<T>(sum);
    }
}

template <class T, int WIDTH> __global__ void __launch_bounds__(WARPS * 32) weight(Lce c) {
    extern __shared__ __align__(128) char shared[];
    using P = Product<T>;
    using Shape = Tiles<T, WIDTH>;
    auto &t = *(Shape *)shared;
    constexpr int MINE = Shape::COLS / 2;
    int64_t n = live(c), v0 = (int64_t)blockIdx.x * ROWS, part = blockIdx.y;
    int warp = threadIdx.x >> 5, r = (threadIdx.x & 31) >> 1, odd = threadIdx.x & 1, steps = (c.D + 15) / 16;
    int64_t tiles = (n + Shape::COLS - 1) / Shape::COLS, last = (part + 1) * tiles / c.parts;
    // Gradients are scaled so that the greatest is between 2^12 and 2^13 in the products. Then small ones do not become
    // 0 in fp16.
    float up = c.top && *c.top > 1e-30f ? exp2f(12 - floorf(log2f(*c.top))) : 1;
    float(*s)[Shape::LDS] = t.s[warp];
    T *p = (T *)s[r];
    typename P::Sum sum[WIDTH / 16];
#pragma unroll
    for (auto &x : sum) P::zero(x);
    load<WIDTH>(t.a, ROWS, (const T *)c.w, v0, c.V, c);
    for (int64_t j = part * tiles / c.parts; j < last; j++) {
        int64_t i0 = j * Shape::COLS;
        __syncthreads();
        load<WIDTH>(t.b, Shape::COLS, (const T *)c.h, i0, n, c);
        for (int i = threadIdx.x; i < Shape::COLS; i += blockDim.x) {
            bool on = i0 + i < n;
            int64_t y = on ? c.y[i0 + i] : -1;
            t.lse[i] = on ? c.lse[i0 + i] : 0, t.grad[i] = on ? c.grad[i0 + i] * up : 0;
            t.target[i] = y >= v0 && y < v0 + ROWS ? (int)(y - v0) : -1;
        }
        __syncthreads();
        scores(t, steps);
        float z[MINE];
#pragma unroll
        for (int i = 0; i < MINE; i++) z[i] = s[r][2 * i + odd];
        __syncwarp();  // all lanes have read their scores
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            int col = 2 * i + odd;
            float e = exp2f((z[i] - t.lse[col]) * LOG2E) - (t.target[col] == warp * 16 + r ? 1.0f : 0.0f);
            p[col] = rounded<T>(t.grad[col] == 0 ? 0 : e * t.grad[col]);  // exactly 0, even if e is not finite
        }
        __syncwarp();
        accumulate<T, WIDTH>(sum, t, steps);
    }
    int64_t v = v0 + warp * 16 + r;
#pragma unroll
    for (int d = 0; d < WIDTH / 16; d++) {
        if (d >= steps) break;
        __syncwarp();
        P::put(s[0], sum[d], Shape::LDS);
        __syncwarp();
        for (int i = odd; i < 16; i += 2) {
            int64_t at = (part * c.V + v) * c.D + d * 16 + i;
            if (v >= c.V || d * 16 + i >= c.D) continue;
            if (c.fp32_out) ((float *)c.dw)[at] = s[r][i] / up;
            else ((T *)c.dw)[at] = rounded<T>(s[r][i] / up);
        }
    }
}
