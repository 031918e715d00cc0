/* Products of bf16 in pairs: 16 lanes, each fp32 lane the sum of two products. For processors with AVX-512 BF16. */

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16

typedef uint16_t bf16;

static inline __m512 dot(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
static inline __m512i widen(const bf16 *x) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)); }
static inline __m512i narrow(__m512 x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)); }
static inline __m512i pairs(__m512i low, __m512i high) { return _mm512_or_si512(low, _mm512_slli_epi32(high, 16)); }
static inline void store(bf16 *to, __m512 x) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x)); }
static inline long up(long x, long step) { return (x + step - 1) / step * step; }
static inline long least(long a, long b) { return a < b ? a : b; }
static inline void *room(long bytes) { return aligned_alloc(64, up(bytes, 64)); }

/* count rows of d (a multiple of 16), `stride` apart -> [pair of rows][d], 0 where there is no row. */
static inline void pack_by_rows(const bf16 *x, long stride, long count, long padded, long d, int32_t *out) {
    for (long pair = 0; pair < padded / 2; pair++)
        for (long i = 0; i < d; i += LANES) {
            __m512i low = 2 * pair < count ? widen(x + 2 * pair * stride + i) : _mm512_setzero_si512();
            __m512i high = 2 * pair + 1 < count ? widen(x + (2 * pair + 1) * stride + i) : _mm512_setzero_si512();
            _mm512_store_si512(out + pair * d + i, pairs(low, high));
        }
}
