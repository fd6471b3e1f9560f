// Corrupts a batch for masked diffusion, as kernels/ops/corrupt.py defines it. Each sequence gets one noise level t. A
// token is masked if its Philox word is below the threshold of that level. The masked positions are listed in order.
// Masks are computed in integers, so they equal the masks of the reference bit for bit.
#include <cstdint>

#include "api.h"

namespace {

enum { STREAM_TOKEN, STREAM_TIME };  // as kernels/philox.py numbers them

// The first word of Philox4x32-10 (Salmon et al. 2011).
uint32_t philox(uint64_t index, uint32_t stream, uint32_t k0, uint32_t k1) {
    uint32_t x0 = uint32_t(index), x1 = uint32_t(index >> 32), x2 = stream, x3 = 0;
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        uint64_t a = uint64_t(x0) * 0xD2511F53u, b = uint64_t(x2) * 0xCD9E8D57u;
        x0 = uint32_t(b >> 32) ^ x1 ^ k0, x1 = uint32_t(b);
        x2 = uint32_t(a >> 32) ^ x3 ^ k1, x3 = uint32_t(a);
    }
    return x0;
}

}  // namespace

// x0, valid (or null), xt, masked and weights are (B, T), t is (B), and rows, targets and row_weights are (B T).
// threshold and weight are the table of a schedule, with 2^16 levels. sampling is 0 for stratified, 1 for antithetic
// and 2 for independent. Returns the number of masked tokens.
API int64_t tdlm_corrupt(
    const int64_t *x0, const uint8_t *valid, int64_t B, int64_t T, uint32_t seed, uint32_t step, int64_t mask_token_id,
    const int64_t *threshold, const double *weight, int sampling, int64_t row_offset, int64_t batch_rows, int64_t *xt,
    uint8_t *masked, float *weights, float *t, int64_t *rows, int64_t *targets, float *row_weights) {
    int64_t n = 0;
    for (int64_t b = 0; b < B; b++) {
        int64_t row = row_offset + b;
        uint64_t u = philox(uint64_t(sampling == 1 ? row / 2 : row), STREAM_TIME, seed, step);
        if (sampling == 0) u = ((uint64_t(row) << 32) + u) / uint64_t(batch_rows);
        if (sampling == 1 && row % 2) u = 0xFFFFFFFFu - u;
        int64_t level = int64_t(u >> 16);
        float w = float(weight[level]);
        t[b] = float((double(level) + 0.5) / 65536);
        for (int64_t i = b * T; i < (b + 1) * T; i++) {
            bool hit = (!valid || valid[i]) && philox(uint64_t(row_offset * T + i), STREAM_TOKEN, seed, step) < threshold[level];
            masked[i] = hit, xt[i] = hit ? mask_token_id : x0[i], weights[i] = hit ? w : 0;
            if (hit) rows[n] = i, targets[n] = x0[i], row_weights[n++] = w;
        }
    }
    for (int64_t i = n; i < B * T; i++) rows[i] = targets[i] = 0, row_weights[i] = 0;
    return n;
}
