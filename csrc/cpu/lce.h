// Linear cross-entropy on the CPU: what api.cpp asks of each instruction set. No torch headers, so that one
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
};

struct Kernels {
    size_t (*scratch)(const Lce &);  // bytes of scratch a task needs
    void (*rows)(const Lce &, int64_t begin, int64_t end, char *scratch);   // nll, lse, dh of rows begin..end
    void (*words)(const Lce &, int64_t begin, int64_t end, char *scratch);  // dw of words begin..end
};

extern const Kernels portable_kernels, avx2_kernels, avx512_kernels, avx512_bf16_kernels;
