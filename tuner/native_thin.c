/* LoRA's thin products: wide rows times a rank of 16, 32, ... General products of such a shape reach a quarter of the
   processor's speed. */

#ifndef __AVX512BF16__

void thin_rows(void) {}
void thin_add(void) {}
void thin_sum(void) {}

#else

#include "native_bf16.h"

#define ROWS 8
#define AHEAD 32

/* w (count, d), count and d even -> [pair of d][count]: pairs lie side by side already, and are only turned. */
static void pack_turned(const bf16 *w, long count, long d, int32_t *out) {
    const int32_t *its = (const int32_t *)w;
    for (long at = 0; at < d / 2; at++)
        for (long row = 0; row < count; row++) out[at * count + row] = its[row * (d / 2) + at];
}

/* out (n, rank), rows out_stride apart = x (n, d) times w: (d, rank), or (rank, d) where turned. d is even, rank a multiple
   of 16. */
void thin_rows(const bf16 *x, const bf16 *w, bf16 *out, long n, long d, long rank, long out_stride, int turned, int threads) {
    int32_t *packed = room(d * rank * 2);
    if (turned)
        pack_turned(w, rank, d, packed);
    else
        pack_by_rows(w, rank, d, d, rank, packed);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < n; row += ROWS) {
        const int32_t *its[ROWS];
        for (int j = 0; j < ROWS; j++) its[j] = (const int32_t *)(x + least(row + j, n - 1) * d);
        for (long r = 0; r < rank; r += LANES) {
            __m512 sum[ROWS];
            for (int j = 0; j < ROWS; j++) sum[j] = _mm512_setzero_ps();
            for (long pair = 0; pair < d / 2; pair++) {
                __m512i its_w = _mm512_load_si512(packed + pair * rank + r);
#pragma GCC unroll 8
                for (int j = 0; j < ROWS; j++) sum[j] = dot(sum[j], _mm512_set1_epi32(its[j][pair]), its_w);
            }
            for (int j = 0; j < ROWS && row + j < n; j++) store(out + (row + j) * out_stride + r, sum[j]);
        }
    }
    free(packed);
}

/* out (n, d) += thin (n, rank), rows thin_stride apart, times w: (rank, d), or (d, rank) where turned. d and rank are
   multiples of 16. */
void thin_add(bf16 *out, const bf16 *thin, const bf16 *w, long n, long d, long rank, long thin_stride, int turned, int threads) {
    int32_t *packed = room(d * rank * 2);
    if (turned)
        pack_turned(w, d, rank, packed);
    else
        pack_by_rows(w, d, rank, rank, d, packed);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < n; row += ROWS) {
        const int32_t *its[ROWS];
        bf16 *to[ROWS];
        for (int j = 0; j < ROWS; j++) {
            its[j] = (const int32_t *)(thin + least(row + j, n - 1) * thin_stride);
            to[j] = out + least(row + j, n - 1) * d;
        }
        for (long at = 0; at < d; at += LANES) {
            __m512 sum[ROWS];
            for (int j = 0; j < ROWS; j++) sum[j] = _mm512_castsi512_ps(_mm512_slli_epi32(widen(to[j] + at), 16));
            for (long pair = 0; pair < rank / 2; pair++) {
                __m512i its_w = _mm512_load_si512(packed + pair * d + at);
#pragma GCC unroll 8
                for (int j = 0; j < ROWS; j++) sum[j] = dot(sum[j], _mm512_set1_epi32(its[j][pair]), its_w);
            }
            for (int j = 0; j < ROWS && row + j < n; j++) store(to[j] + at, sum[j]);
        }
    }
    free(packed);
}

/* The sum over n of x (n, d)^T times thin (n, rank), rows thin_stride apart, times factor: (d, rank) fp32, or (rank, d)
   where by_rank. d and rank are multiples of 16. */
void thin_sum(const bf16 *x, const bf16 *thin, float *out, long n, long d, long rank, long thin_stride, float factor, int by_rank, int threads) {
    long padded = up(n, 2);
    int32_t *packed = room(padded * rank * 2);
    pack_by_rows(thin, thin_stride, n, padded, rank, packed);
    __m512 times = _mm512_set1_ps(factor);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long at = 0; at < d; at += LANES)
        for (long r = 0; r < rank; r += LANES) {
            __m512 sum[LANES];
            for (int j = 0; j < LANES; j++) sum[j] = _mm512_setzero_ps();
            for (long pair = 0; pair < padded / 2; pair++) {
                const bf16 *first = x + 2 * pair * d + at;
                _mm_prefetch((const char *)(first + AHEAD * d), _MM_HINT_T0); /* rows are further apart than the processor looks */
                _mm_prefetch((const char *)(first + (AHEAD + 1) * d), _MM_HINT_T0);
                __m512i its_x = pairs(widen(first), 2 * pair + 1 < n ? widen(first + d) : _mm512_setzero_si512());
                const int32_t *its = packed + pair * rank + r;
#pragma GCC unroll 16
                for (int j = 0; j < LANES; j++) sum[j] = dot(sum[j], _mm512_set1_epi32(its[j]), its_x);
            }
            if (by_rank)
                for (int j = 0; j < LANES; j++) _mm512_storeu_ps(out + (r + j) * d + at, _mm512_mul_ps(sum[j], times));
            else {
                float turned[LANES][LANES];
                for (int j = 0; j < LANES; j++) _mm512_storeu_ps(turned[j], _mm512_mul_ps(sum[j], times));
                for (int i = 0; i < LANES; i++)
                    for (int j = 0; j < LANES; j++) out[(at + i) * rank + r + j] = turned[j][i];
            }
        }
    free(packed);
}

#endif
