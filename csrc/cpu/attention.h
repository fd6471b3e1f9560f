// Computes attention for one head at a time, and its gradients:
//
//     P = softmax(q k^T / sqrt(K) + mask),   out = (P keep / (1 - p)) v
//
// keep is the dropout mask, which is 0 with probability p. Rows of q are taken in blocks, and a block is multiplied by
// every key that it may attend to. The forward pass stores nothing: the backward pass computes P of a block again.
// Rotary positions (Su et al. 2021) are applied to q and k when they are read. All arithmetic is fp32.
//
// Keys are stored in the order in which Philox produces its words, vector by vector: column c of a group of 4 LANES
// columns holds key 4 (c % LANES) + c / LANES of that group.
#pragma once
#include "linear_cross_entropy.h"

namespace {

template <class T>
struct Tile : Scratch {
    typedef typename T::F F;
    typedef typename T::U U;  // a vector of as many unsigned integers; I: of signed ones
    typedef typename T::I I;
    static constexpr int VECS = T::VECS, LANES = T::LANES, WIDTH = VECS * LANES, ROWS = 4, TALL = 8;
    static constexpr int64_t QUAD = 4 * LANES, BLOCK = 64;  // BLOCK: rows of q in a block

    const Attention &c;
    int64_t Tp, Kp;
    float *kt, *vt, *kr, *vr, *q, *o, *s, *dp, *keep, *out, *dk, *dv;
    int32_t *seen, *segment;             // per column: 1 if the key is a real token; its document
    const int64_t *documents = nullptr;  // of this sequence

    Tile(const Attention &c, char *base) : c(c) {
        Tp = up(c.T, QUAD), Kp = up(c.K, LANES);
        kt = take<float>(base, Tp * c.K), vr = take<float>(base, Tp * Kp);
        q = take<float>(base, BLOCK * Kp), s = take<float>(base, BLOCK * Tp), keep = take<float>(base, BLOCK * Tp);
        out = take<float>(base, BLOCK * Kp), seen = take<int32_t>(base, Tp), segment = take<int32_t>(base, Tp);
        if (!c.backward) return;
        vt = take<float>(base, Tp * c.K), kr = take<float>(base, Tp * Kp), o = take<float>(base, BLOCK * Kp);
        dp = take<float>(base, BLOCK * Tp), dk = take<float>(base, Tp * Kp), dv = take<float>(base, Tp * Kp);
    }

    static int64_t key_of(int64_t col) { return col / QUAD * QUAD + col % LANES * 4 + col % QUAD / LANES; }

    const char *at(int which, int64_t b, int64_t h, int64_t t) const {
        const int64_t *step = c.strides + 3 * which;
        return (const char *)c.tensors[which] + (b * step[0] + h * step[1] + t * step[2]) * (c.bf16 ? 2 : 4);
    }
    void read(float *to, int which, int64_t b, int64_t h, int64_t t, float scale) const {
        const char *from = at(which, b, h, t);
        if (c.bf16) for (int64_t i = 0; i < c.K; i++) to[i] = widen(((const uint16_t *)from)[i]) * scale;
        else for (int64_t i = 0; i < c.K; i++) to[i] = ((const float *)from)[i] * scale;
        memset(to + c.K, 0, (Kp - c.K) * 4);
    }
    void write(int which, int64_t b, int64_t h, int64_t t, const float *from, float scale) const {
        char *to = (char *)at(which, b, h, t);
        if (c.bf16) for (int64_t i = 0; i < c.K; i++) ((uint16_t *)to)[i] = bf16(from[i] * scale);
        else for (int64_t i = 0; i < c.K; i++) ((float *)to)[i] = from[i] * scale;
    }

    // Rotate the pairs (i, i + K / 2) of x by the angles of position t; backwards if sign is -1.
    void turn(float *x, int64_t t, float sign) const {
        if (!c.rope) return;
        int64_t half = c.K / 2;
        const float *cosine = c.rope + t * c.K, *sine = cosine + half;
        for (int64_t i = 0; i < half; i++) {
            float a = x[i], b = x[i + half], s = sign * sine[i];
            x[i] = a * cosine[i] - b * s, x[i + half] = b * cosine[i] + a * s;
        }
    }

    // Store the key (or value) of each column as a row, with zeros past T. Store it also in panels of WIDTH columns, in
    // which neighbouring columns lie beside each other.
    void pack(float *rows, float *panels, int which, int64_t b, int64_t h) const {
        for (int64_t col = 0; col < Tp; col++) {
            int64_t t = key_of(col);
            if (t < c.T) read(rows + col * Kp, which, b, h, t, 1);
            else memset(rows + col * Kp, 0, Kp * 4);
            if (t < c.T && which == 1) turn(rows + col * Kp, t, 1);
            float *panel = panels + col / WIDTH * WIDTH * c.K + col % WIDTH;
            for (int64_t i = 0; i < c.K; i++) panel[i * WIDTH] = rows[col * Kp + i];
        }
    }

    // to (n, cols) = a (n, K) times the packed columns.
    NOINLINE void scores(float *to, const float *a, const float *panels, int64_t n, int64_t cols) const {
        for (int64_t col = 0; col < cols; col += WIDTH)
            for (int64_t r = 0; r < n; r += ROWS) {
                F sum[ROWS][VECS];
                UNROLL for (int i = 0; i < ROWS; i++)
                    UNROLL for (int j = 0; j < VECS; j++) sum[i][j] = T::set1(0);
                const float *b = panels + col * c.K, *x = a + r * Kp;
                for (int64_t k = 0; k < c.K; k++, b += WIDTH) {
                    F v[VECS];
                    UNROLL for (int j = 0; j < VECS; j++) v[j] = T::load(b + j * LANES);
                    UNROLL for (int i = 0; i < ROWS; i++) {
                        F y = T::set1(x[i * Kp + k]);
                        UNROLL for (int j = 0; j < VECS; j++) sum[i][j] = T::dot(sum[i][j], y, v[j]);
                    }
                }
                UNROLL for (int i = 0; i < ROWS; i++)
                    UNROLL for (int j = 0; j < VECS; j++) T::store(to + (r + i) * Tp + col + j * LANES, sum[i][j]);
            }
    }

    // to (n, Kp) += a b, where b has `sum` rows. Element (row, i) of a is a[row * down + i * along].
    template <int C>
    inline __attribute__((always_inline)) void product(float *to, const float *a, int64_t down, int64_t along,
                                                       const float *b, int64_t n, int64_t sum) const {
        for (int64_t r = 0; r < n; r += TALL) {
            F acc[TALL][C];
            UNROLL for (int i = 0; i < TALL; i++)
                UNROLL for (int j = 0; j < C; j++) acc[i][j] = T::load(to + (r + i) * Kp + j * LANES);
            for (int64_t k = 0; k < sum; k++) {
                F v[C];
                UNROLL for (int j = 0; j < C; j++) v[j] = T::load(b + k * Kp + j * LANES);
                UNROLL for (int i = 0; i < TALL; i++) {
                    F y = T::set1(a[(r + i) * down + k * along]);
                    UNROLL for (int j = 0; j < C; j++) acc[i][j] = T::dot(acc[i][j], y, v[j]);
                }
            }
            UNROLL for (int i = 0; i < TALL; i++)
                UNROLL for (int j = 0; j < C; j++) T::store(to + (r + i) * Kp + j * LANES, acc[i][j]);
        }
    }
    NOINLINE void add_product(float *to, const float *a, int64_t down, int64_t along, const float *b, int64_t n,
                              int64_t sum) const {
        int64_t d = 0;
        for (; d + LANES < Kp; d += 2 * LANES) product<2>(to + d, a, down, along, b + d, n, sum);
        if (d < Kp) product<1>(to + d, a, down, along, b + d, n, sum);
    }

    // Draw the dropout of row i of a head: 1 / (1 - p) where an entry is kept, else 0. The random words are those of
    // kernels/philox.py (Philox4x32-10, Salmon et al. 2011).
    void draw(float *to, int64_t head, int64_t i, int64_t cols) const {
        int64_t first = (head * c.T + i) * ((c.T + 3) / 4);
        F scale = T::set1(c.keep_scale);
        for (int64_t quad = 0; quad < cols / QUAD; quad++, to += QUAD) {
            U x0 = T::count() + uint32_t(first + quad * LANES), x1 = {}, x2 = {}, x3 = {}, high0, low0, high1, low1;
            uint32_t k0 = c.key[0], k1 = c.key[1];
            for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
                T::multiply(x0, 0xD2511F53u, high0, low0);
                T::multiply(x2, 0xCD9E8D57u, high1, low1);
                x0 = high1 ^ x1 ^ k0, x1 = low1, x2 = high0 ^ x3 ^ k1, x3 = low0;
            }
            const U words[4] = {x0, x1, x2, x3};
            UNROLL for (int w = 0; w < 4; w++)
                T::store(to + w * LANES, (F)((U)scale & (U)((I)(words[w] >> 1) >= c.threshold)));
        }
    }

    // Set the scores of row i to -inf where the query may not attend to the key.
    void mask(float *row, int64_t i, int64_t cols) const {
        int32_t last = int32_t(c.causal ? i : c.T - 1), own = int32_t(i);
        int32_t mine = documents ? int32_t(documents[i]) : 0;
        for (int64_t quad = 0; quad < cols; quad += QUAD)
            for (int w = 0; w < 4; w++)
                for (int32_t l = 0; l < LANES; l++) {
                    int64_t col = quad + w * LANES + l;
                    int32_t key = int32_t(quad) + 4 * l + w;
                    bool ok = ((key <= last) & (seen[col] != 0) & (segment[col] == mine)) | (key == own);
                    row[col] = ok ? row[col] : -INFINITY;
                }
    }

    // Replace each row of s by exp(s - max), and put 1 / (its sum) into `inverse`. Rows past T become 0.
    NOINLINE void softmax(float *inverse, int64_t first, int64_t n, int64_t rows, int64_t cols, bool masked) const {
        for (int64_t r = 0; r < rows; r++) {
            float *row = s + r * Tp;
            inverse[r] = 0;
            if (r >= n) {
                memset(row, 0, cols * 4);
                continue;
            }
            if (masked) mask(row, first + r, cols);
            F m = T::set1(-INFINITY), sum = T::set1(0);
            for (int64_t col = 0; col < cols; col += LANES) m = T::max(m, T::load(row + col));
            F shift = T::set1(T::highest(m) * LOG2E);
            for (int64_t col = 0; col < cols; col += LANES) {
                F e = T::exp2(T::fmsub(T::load(row + col), T::set1(LOG2E), shift));
                sum += e;
                T::store(row + col, e);
            }
            inverse[r] = 1 / total<T>(sum);
        }
    }

    NOINLINE void times(float *a, const float *b, int64_t rows, int64_t cols) const {
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = r * Tp; i < r * Tp + cols; i += LANES) T::store(a + i, T::load(a + i) * T::load(b + i));
    }

    // s = P keep;  dp = P (dp keep - the sum of P dp keep over the row).
    NOINLINE void gradient_of_softmax(const float *inverse, int64_t rows, int64_t cols) const {
        for (int64_t r = 0; r < rows; r++) {
            float *p = s + r * Tp, *d = dp + r * Tp, *m = keep + r * Tp;
            F scale = T::set1(inverse[r]), sum = T::set1(0);
            for (int64_t i = 0; i < cols; i += LANES) {
                F e = T::load(p + i) * scale, g = T::load(d + i);
                if (c.key) {
                    F kept = T::load(m + i);
                    g *= kept;
                    T::store(d + i, g);
                    T::store(p + i, e * kept);
                    T::store(m + i, e);
                } else {
                    T::store(p + i, e);
                }
                sum += e * g;
            }
            float along = total<T>(sum);
            const float *whole = c.key ? m : p;
            for (int64_t i = 0; i < cols; i += LANES)
                T::store(d + i, T::load(whole + i) * (T::load(d + i) - T::set1(along)));
        }
    }

    void run(int64_t head) {
        int64_t b = head / c.H, h = head % c.H, T_ = c.T, end = T_;
        float scale = 1 / sqrtf(float(c.K)), inverse[BLOCK];
        const uint8_t *valid = c.valid ? c.valid + b * T_ : nullptr;
        documents = c.segments ? c.segments + b * T_ : nullptr;
        for (int64_t col = 0; col < Tp; col++) {
            int64_t t = key_of(col);
            seen[col] = t < T_ && (!valid || valid[t]);
            segment[col] = documents && t < T_ ? int32_t(documents[t]) : 0;
        }
        if (valid) while (end > 0 && !valid[end - 1]) end--;
        if (c.backward) {
            pack(kr, kt, 1, b, h), pack(vr, vt, 2, b, h);
            memset(dk, 0, Tp * Kp * 4), memset(dv, 0, Tp * Kp * 4);
        } else {
            pack(vr, kt, 1, b, h);  // k is needed in panels only, so v overwrites its rows
            for (int64_t col = 0; col < Tp; col++)
                if (key_of(col) < T_) read(vr + col * Kp, 2, b, h, key_of(col), 1);
        }
        for (int64_t first = 0; first < T_; first += BLOCK) {
            int64_t n = least(BLOCK, T_ - first), rows = up(n, TALL), cols = Tp;
            if (c.causal) cols = least(cols, up(first + n, QUAD));
            if (first + n <= end) cols = least(cols, up(end, QUAD));  // no row here is padding or attends past `end`
            bool masked = c.causal || valid || documents || cols > T_;
            for (int64_t r = 0; r < rows; r++) {
                if (r < n) read(q + r * Kp, 0, b, h, first + r, scale), turn(q + r * Kp, first + r, 1);
                else memset(q + r * Kp, 0, Kp * 4);
            }
            scores(s, q, kt, rows, cols);
            softmax(inverse, first, n, rows, cols, masked);
            if (c.key) for (int64_t r = 0; r < n; r++) draw(keep + r * Tp, head, first + r, cols);
            if (c.key && rows > n) memset(keep + n * Tp, 0, (rows - n) * Tp * 4);
            memset(out, 0, rows * Kp * 4);
            if (!c.backward) {
                if (c.key) times(s, keep, rows, cols);
                add_product(out, s, Tp, 1, vr, rows, cols);
                for (int64_t r = 0; r < n; r++) write(3, b, h, first + r, out + r * Kp, inverse[r]);
                continue;
            }
            for (int64_t r = 0; r < rows; r++) {
                if (r < n) read(o + r * Kp, 3, b, h, first + r, 1);
                else memset(o + r * Kp, 0, Kp * 4);
            }
            scores(dp, o, vt, rows, cols);
            gradient_of_softmax(inverse, rows, cols);
            add_product(dv, s, 1, Tp, o, cols, rows);
            add_product(dk, dp, 1, Tp, q, cols, rows);  // q was multiplied by the scale when it was read
            add_product(out, dp, Tp, 1, kr, rows, cols);
            for (int64_t r = 0; r < n; r++) {
                turn(out + r * Kp, first + r, -1);
                write(4, b, h, first + r, out + r * Kp, scale);
            }
        }
        if (!c.backward) return;
        for (int64_t col = 0; col < Tp; col++) {
            int64_t t = key_of(col);
            if (t >= T_) continue;
            turn(dk + col * Kp, t, -1);
            write(5, b, h, t, dk + col * Kp, 1), write(6, b, h, t, dv + col * Kp, 1);
        }
    }

    static size_t scratch(const Attention &c) { return Tile(c, nullptr).bytes; }
    static void head_of(const Attention &c, int64_t head, char *base) { Tile(c, base).run(head); }
};

}  // namespace
