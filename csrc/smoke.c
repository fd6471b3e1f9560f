// Calls the library of csrc/cpu as kernels/cpu/library.py does, and compares the linear cross-entropy, its gradient and
// SwiGLU with double precision, for every instruction set that the CPU has: `smoke LIBRARY`. csrc/wheels.py runs it.
#include <math.h>
#include <stdint.h>
#include <stdio.h>

#ifdef _WIN32
#include <windows.h>
#define FIND(name) (void *)GetProcAddress(library, name)
#else
#include <dlfcn.h>
#define FIND(name) dlsym(library, name)
#endif

enum { N = 37, D = 48, V = 501, THREADS = 2 };
static float h[N * D], w[V * D], nll[N], dh[N * D], x[N * 2 * D], gated[N * D];
static double lse[N];
static int64_t y[N];

static double random_between(double low, double high) {
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * (double)(state >> 40) / (1 << 24);
}

static double worst;
static void compare(double ours, double truth) {
    double error = fabs(ours - truth) / (1 + fabs(truth));
    if (!(error <= worst)) worst = error;  // a NaN is worst
}

static void check_cross_entropy(void) {
    static double p[V], exact[D];
    for (int i = 0; i < N; i++) {
        double sum = 0;
        for (int v = 0; v < V; v++) {
            p[v] = 0;
            for (int d = 0; d < D; d++) p[v] += (double)h[i * D + d] * w[v * D + d];
            sum += exp(p[v]);
        }
        compare(lse[i], log(sum));
        compare(nll[i], log(sum) - p[y[i]]);
        for (int d = 0; d < D; d++) {
            exact[d] = -w[y[i] * D + d];
            for (int v = 0; v < V; v++) exact[d] += exp(p[v]) / sum * w[v * D + d];
            compare(dh[i * D + d], exact[d]);
        }
    }
}

int main(int count, char **words) {
    if (count != 2) return puts("usage: smoke LIBRARY"), 2;
#ifdef _WIN32
    HMODULE library = LoadLibraryA(words[1]);
    if (!library) return printf("%s does not load: error %lu\n", words[1], GetLastError()), 1;
#else
    void *library = dlopen(words[1], RTLD_NOW);
    if (!library) return puts(dlerror()), 1;
#endif
    int (*has)(int) = FIND("tdlm_has");
    int (*forward)(int, int, const void *, int, const void *, int, int, const int64_t *, int64_t, int64_t, int64_t,
                   float *, double *, void *) = FIND("tdlm_lce_forward");
    int (*rows)(int, int, int, const void *, const void *, void *, const float *, float *, int64_t, int64_t, int64_t,
                float) = FIND("tdlm_rows");
    if (!has || !forward || !rows || !FIND("tdlm_abi") || !FIND("tdlm_lce_backward_weight") || !FIND("tdlm_lce_sum") ||
        !FIND("tdlm_attention") || !FIND("tdlm_corrupt") || !FIND("tdlm_use_threads_of"))
        return puts("a function is not exported"), 1;
    for (int i = 0; i < N * D; i++) h[i] = (float)random_between(-1, 1);
    for (int i = 0; i < V * D; i++) w[i] = (float)random_between(-1, 1);
    for (int i = 0; i < N * 2 * D; i++) x[i] = (float)random_between(-4, 4);
    for (int i = 0; i < N; i++) y[i] = i * 13 % V;
    const char *names[] = {"portable", "avx2", "avx512"};
    printf("largest error against double precision:");
    for (int isa = 0; isa < 3; isa++) {
        if (!has(isa)) continue;
        worst = 0;
        if (forward(isa, THREADS, h, 0, w, 0, 0, y, N, D, V, nll, lse, dh)) return puts(" an error code"), 1;
        check_cross_entropy();
        if (rows(isa, THREADS, 0, x, NULL, gated, NULL, NULL, N, D, 8, 0)) return puts(" an error code"), 1;
        for (int i = 0; i < N * D; i++) {
            double a = x[i / D * 2 * D + i % D], b = x[i / D * 2 * D + D + i % D];
            compare(gated[i], a / (1 + exp(-a)) * b);
        }
        printf(" %s %.1e", names[isa], worst);
        if (!(worst < 1e-5)) return puts(", too large"), 1;
    }
    puts("");
    return 0;
}
