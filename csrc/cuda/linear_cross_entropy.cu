// The C interface of linear_cross_entropy.h that kernels/cuda/library.py loads. It launches kernels on the stream of
// the caller and never waits for the device. No header of PyTorch is included, so that one library serves every version
// of PyTorch and Python.
#include "linear_cross_entropy.h"

static cudaError_t launch(void (*kernel)(Lce), int64_t blocks, int parts, size_t bytes, Lce &c, cudaStream_t stream) {
    void *args[] = {&c};
    cudaError_t error = cudaSuccess;
    if (bytes > 48 << 10)  // more than 48 KB must be requested
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error) return error;
    return cudaLaunchKernel(kernel, dim3((unsigned)blocks, parts), dim3(WARPS * 32), args, bytes, stream);
}

template <class T, int WIDTH> static cudaError_t attend(Lce &c, cudaStream_t stream) {
    bool of_w = c.dw;
    int64_t blocks = ((of_w ? c.V : c.N) + ROWS - 1) / ROWS;
    auto *kernel = of_w ? weight<T, WIDTH> : forward<T, WIDTH>;
    static_assert(sizeof(Tiles<T, WIDTH>) <= 99 << 10, "a block of compute capability 8.6 has no more shared memory");
    cudaError_t error = launch(kernel, blocks, c.parts, sizeof(Tiles<T, WIDTH>), c, stream);
    return error || of_w ? error : launch(combine<T>, (c.N + WARPS - 1) / WARPS, 1, 0, c, stream);
}

template <class T> static cudaError_t attend(Lce &c, cudaStream_t stream) {
    c.vectors = c.D * sizeof(T) % 16 == 0 && (uintptr_t)c.h % 16 == 0 && (uintptr_t)c.w % 16 == 0;
    if (c.N < 1 || c.V < 1 || c.D < 1 || c.D > 256 || c.parts < 1) return cudaErrorInvalidValue;
    if (c.D <= 64) return attend<T, 64>(c, stream);
    return c.D <= 128 ? attend<T, 128>(c, stream) : attend<T, 256>(c, stream);
}

static int attend(int device, int type, Lce &c, void *stream) {
    cudaError_t error = cudaSetDevice(device);
    if (error) return error;
    if (type == 0) return attend<float>(c, (cudaStream_t)stream);
    if (type == 1) return attend<__nv_bfloat16>(c, (cudaStream_t)stream);
    return type == 2 ? attend<__half>(c, (cudaStream_t)stream) : cudaErrorInvalidValue;
}

#ifdef _WIN32
#define API extern "C" __declspec(dllexport)
#else
#define API extern "C" __attribute__((visibility("default")))
#endif

// Increased when an argument changes; equal to _ABI in kernels/cuda/library.py.
API int tdlm_cuda_abi() { return 1; }

// Return 0 if the kernels can run on this device, else an error for tdlm_cuda_error.
API int tdlm_cuda_runs(int device) {
    cudaFuncAttributes found;
    cudaError_t error = cudaSetDevice(device);
    return error ? error : cudaFuncGetAttributes(&found, combine<__nv_bfloat16>);
}

API const char *tdlm_cuda_error(int error) { return cudaGetErrorString((cudaError_t)error); }

// Launch forward and combine on the stream. type is 0 for fp32, 1 for bf16 and 2 for fp16. The other arguments are
// those of struct Lce. If dh is not needed, dh and acc are null.
API int tdlm_cuda_lce_forward(int device, void *stream, int type, const void *h, const void *w, const int64_t *y,
                              const int64_t *n_rows, int64_t N, int D, int64_t V, int parts, int fp32_out, float *m,
                              float *l, float *acc, float *nll, float *lse, void *dh) {
    Lce c = {};
    c.h = h, c.w = w, c.y = y, c.n_rows = n_rows, c.N = N, c.D = D, c.V = V, c.parts = parts, c.fp32_out = fp32_out;
    c.m = m, c.l = l, c.acc = acc, c.nll = nll, c.lse = lse, c.dh = dh;
    return attend(device, type, c, stream);
}

API int tdlm_cuda_lce_backward_weight(int device, void *stream, int type, const void *h, const void *w,
                                      const int64_t *y, const int64_t *n_rows, int64_t N, int D, int64_t V, int parts,
                                      int fp32_out, const float *lse, const float *grad, const float *top, void *dw) {
    Lce c = {};
    c.h = h, c.w = w, c.y = y, c.n_rows = n_rows, c.N = N, c.D = D, c.V = V, c.parts = parts, c.fp32_out = fp32_out;
    c.lse = (float *)lse, c.grad = grad, c.top = top, c.dw = dw;
    return attend(device, type, c, stream);
}
