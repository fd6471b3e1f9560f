// Computes c += a b for tiles of 16 x 16 in shared memory, with one warp and sums in fp32. bf16 and fp16 run on tensor
// cores. fp32 runs on the ordinary units, because TF32 of the tensor cores would keep 10 of its 23 bits.
#pragma once
#include <mma.h>

#include <cstdint>

namespace wmma = nvcuda::wmma;
constexpr unsigned WARP = 0xffffffffu;  // the mask of all lanes

__device__ inline float number(float x) { return x; }
__device__ inline float number(__half x) { return __half2float(x); }
__device__ inline float number(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T> __device__ T rounded(float x);
template <> __device__ inline float rounded<float>(float x) { return x; }
template <> __device__ inline __half rounded<__half>(float x) { return __float2half(x); }
template <> __device__ inline __nv_bfloat16 rounded<__nv_bfloat16>(float x) { return __float2bfloat16(x); }

// a is stored by rows. b is stored by rows too, or by columns as Transposed.
template <class T> struct Product {
    using A = wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major>;
    using B = wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::row_major>;
    using Transposed = wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major>;
    using Sum = wmma::fragment<wmma::accumulator, 16, 16, 16, float>;

    template <class F> __device__ static void load(F &f, const T *from, int ld) {
        wmma::load_matrix_sync(f, from, ld);
    }
    template <class F> __device__ static void add(Sum &c, const A &a, const F &b) { wmma::mma_sync(c, a, b, c); }
    __device__ static void zero(Sum &c) { wmma::fill_fragment(c, 0.0f); }
    __device__ static void get(Sum &c, const float *from, int ld) {
        wmma::load_matrix_sync(c, from, ld, wmma::mem_row_major);
    }
    __device__ static void put(float *to, const Sum &c, int ld) {
        wmma::store_matrix_sync(to, c, ld, wmma::mem_row_major);
    }
};

// A lane has the sums of rows r and r + 8 and columns c to c + 3, where r = lane / 4 and c = 4 (lane % 4).
template <> struct Product<float> {
    struct A { const float *at; int ld; };
    struct B { const float *at; int ld; };
    struct Transposed { const float *at; int ld; };
    struct Sum { float x[2][4]; };

    __device__ static int row() { return (threadIdx.x & 31) >> 2; }
    __device__ static int col() { return (threadIdx.x & 3) * 4; }
    template <class F> __device__ static void load(F &f, const float *from, int ld) { f.at = from, f.ld = ld; }
    __device__ static void add(Sum &c, const A &a, const B &b) {
#pragma unroll
        for (int k = 0; k < 16; k += 4) {
            float4 p = *(const float4 *)(a.at + row() * a.ld + k);
            float4 q = *(const float4 *)(a.at + (row() + 8) * a.ld + k);
            const float *at = b.at + k * b.ld + col();
            step(c, p.x, q.x, *(const float4 *)at);
            step(c, p.y, q.y, *(const float4 *)(at + b.ld));
            step(c, p.z, q.z, *(const float4 *)(at + 2 * b.ld));
            step(c, p.w, q.w, *(const float4 *)(at + 3 * b.ld));
        }
    }
    __device__ static void add(Sum &c, const A &a, const Transposed &b) {
#pragma unroll
        for (int k = 0; k < 16; k += 4) {
            float4 p = *(const float4 *)(a.at + row() * a.ld + k);
            float4 q = *(const float4 *)(a.at + (row() + 8) * a.ld + k);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float4 w = *(const float4 *)(b.at + (col() + j) * b.ld + k);
                c.x[0][j] = fmaf(p.w, w.w, fmaf(p.z, w.z, fmaf(p.y, w.y, fmaf(p.x, w.x, c.x[0][j]))));
                c.x[1][j] = fmaf(q.w, w.w, fmaf(q.z, w.z, fmaf(q.y, w.y, fmaf(q.x, w.x, c.x[1][j]))));
            }
        }
    }
    __device__ static void step(Sum &c, float p, float q, float4 w) {
        c.x[0][0] = fmaf(p, w.x, c.x[0][0]), c.x[1][0] = fmaf(q, w.x, c.x[1][0]);
        c.x[0][1] = fmaf(p, w.y, c.x[0][1]), c.x[1][1] = fmaf(q, w.y, c.x[1][1]);
        c.x[0][2] = fmaf(p, w.z, c.x[0][2]), c.x[1][2] = fmaf(q, w.z, c.x[1][2]);
        c.x[0][3] = fmaf(p, w.w, c.x[0][3]), c.x[1][3] = fmaf(q, w.w, c.x[1][3]);
    }
    __device__ static void zero(Sum &c) {
        for (auto &row : c.x)
            for (float &x : row) x = 0;
    }
    __device__ static void get(Sum &c, const float *from, int ld) {
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 4; j++) c.x[i][j] = from[(row() + 8 * i) * ld + col() + j];
    }
    __device__ static void put(float *to, const Sum &c, int ld) {
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 4; j++) to[(row() + 8 * i) * ld + col() + j] = c.x[i][j];
    }
};
