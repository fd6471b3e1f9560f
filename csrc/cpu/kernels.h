// The functions that each instruction set gives library.cpp. No torch headers, so that one
// library serves every version of torch and Python.
#pragma once
#include <cstddef>
#include <cstdint>

struct Lce {
    const void *h, *w;        // (n, D), (V, D): fp32, or bf16 where the flag below says so
    bool h_bf16, w_bf16;
    bool round;               // round both to bf16 before they are multiplied
    int64_t n, D, V;
    const int64_t *y;         // (n), in 0..V-1
    float *nll, *lse;         // (n)
    void *dh;                 // (n, D) in h's type, or null
    const float *grad;        // (n)
    void *dw;                 // (V, D) in w's type
    int64_t step;             // rows, or words, that one task takes at most
    bool words;               // the sweep is over rows, for words: B is h
    char *packed;             // B as the products want it, shared by all tasks
    // Three products instead of four: `count` rows from `first` on keep their p until their lse is known.
    int64_t first, count;
    char *kept;               // or null
    float *sums;              // of dw so far, (panels of words, D, words of a panel)
    bool begins, ends;        // this is the first block of rows, the last
};

struct Attention {
    const void *tensors[7];         // q, k, v, out (backward: its gradient), dq, dk, dv
    int64_t strides[21];            // of each: from sequence to sequence, head to head, token to token, in elements
    bool bf16, backward, causal;
    int64_t H, T, K;
    const uint8_t *valid;           // (B, T), 0 at padding, or null
    const int64_t *segments;        // (B, T), document of each token, or null
    const float *rope;              // (T, K): K / 2 cosines and K / 2 sines that turn q and k, or null
    const uint32_t *key;            // of the dropout's Philox, or null
    int32_t threshold;              // an entry is kept where its word >> 1 is not below,
    float keep_scale;               // and scaled by this
};

// Rows of what lies between the products of a block.
struct Rows {
    const void *x, *dy;       // dy is null in the forward pass
    void *y;                  // the output, or the gradient of x
    const void *weight;       // (n), of rms_norm
    float *dw;                // (tasks, n), of rms_norm
    bool bf16;
    int64_t n, step;          // step: rows of a task
    float eps;
};

struct LceSizes {
    size_t scratch, packed, kept, sums;  // bytes: of a task, of B, of what c.count rows keep, of the sums of dw
    int64_t blocks;                      // of B
    int64_t group;                       // blocks of rows and tasks are cut at multiples of it
};

struct Kernels {
    LceSizes (*sizes)(const Lce &);
    void (*pack)(const Lce &, int64_t i, char *scratch);                    // block i of B
    void (*rows)(const Lce &, int64_t begin, int64_t end, char *scratch);   // nll, lse, dh of rows begin..end
    void (*words)(const Lce &, int64_t begin, int64_t end, char *scratch);  // dw of words begin..end
    void (*weight)(const Lce &, int64_t i, char *scratch);                  // dw of block i of words from what is kept
    void (*swiglu)(const Rows &, int64_t begin, int64_t end);
    void (*rms_norm)(const Rows &, int64_t begin, int64_t end);
    size_t (*head_scratch)(const Attention &);
    void (*head)(const Attention &, int64_t head, char *scratch);           // one head of one sequence
};

extern const Kernels portable_kernels, avx2_kernels, avx512_kernels, avx512_bf16_kernels;
