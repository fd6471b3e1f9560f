// Declares the kernels that every instruction set provides to library.cpp, and their arguments. No header of PyTorch is
// included, so that one library serves every version of PyTorch and Python.
#pragma once
#include <cstddef>
#include <cstdint>

// Arguments of the linear cross-entropy.
struct Lce {
    const void *h, *w;        // (n, D), (V, D): fp32, or bf16 if the flag below is set
    bool h_bf16, w_bf16;
    bool round;               // round both to bf16 before they are multiplied
    int64_t n, D, V;
    const int64_t *y;         // (n), in 0..V-1
    float *nll;               // (n)
    double *lse;              // (n)
    void *dh;                 // (n, D) in h's type, or null
    const float *grad;        // (n)
    void *dw;                 // (V, D) in w's type
    int64_t step;             // most rows (or words of the vocabulary) per task
    bool words;               // compute dw: the tasks are words, and B is h
    char *packed;             // B in the layout of the products, shared by all tasks
    // For three products instead of four: p of `count` rows from `first` on is stored until their lse is known.
    int64_t first, count;
    char *kept;               // where it is stored, or null
    float *sums;              // partial sums of dw: (panels of words, D, words of a panel)
    bool begins, ends;        // whether this is the first, or the last, block of rows
};

// Arguments of attention.
struct Attention {
    const void *tensors[7];         // q, k, v, out (backward: its gradient), dq, dk, dv
    int64_t strides[21];            // per tensor: of sequences, heads and tokens, in elements
    bool bf16, backward, causal;
    int64_t H, T, K;
    const uint8_t *valid;           // (B, T), 0 at padding, or null
    const int64_t *segments;        // (B, T), document of each token, or null
    const float *rope;              // (T, K): K / 2 cosines and K / 2 sines of the rotation, or null
    const uint32_t *key;            // two words, the Philox key of the dropout, or null
    int32_t threshold;              // an entry is kept if its word >> 1 is at least this,
    float keep_scale;               // and then multiplied by this
};

// Arguments of the row-wise operations: SwiGLU and RMSNorm.
struct Rows {
    const void *x, *dy;       // dy is null in the forward pass
    void *y;                  // the output, or the gradient of x
    const void *weight;       // (n), for rms_norm
    float *dw;                // (tasks, n), for rms_norm
    bool bf16;
    int64_t n, step;          // step: rows per task
    float eps;
};

// Sizes that depend on the instruction set.
struct LceSizes {
    size_t scratch, packed, kept, sums;  // in bytes: per task; B; p of c.count rows; sums of dw
    int64_t blocks;                      // number of blocks of B
    int64_t group;                       // tasks and blocks of rows begin at multiples of this
};

// The kernels of one instruction set.
struct Kernels {
    LceSizes (*sizes)(const Lce &);
    void (*pack)(const Lce &, int64_t i, char *scratch);                    // pack block i of B
    void (*rows)(const Lce &, int64_t begin, int64_t end, char *scratch);   // nll, lse, dh of rows begin..end
    void (*words)(const Lce &, int64_t begin, int64_t end, char *scratch);  // dw of words begin..end
    void (*weight)(const Lce &, int64_t i, char *scratch);                  // dw of block i of words, from the stored p
    void (*swiglu)(const Rows &, int64_t begin, int64_t end);
    void (*rms_norm)(const Rows &, int64_t begin, int64_t end);
    size_t (*head_scratch)(const Attention &);
    void (*head)(const Attention &, int64_t head, char *scratch);           // one head of one sequence
};

extern const Kernels portable_kernels, avx2_kernels, avx512_kernels, avx512_bf16_kernels;
