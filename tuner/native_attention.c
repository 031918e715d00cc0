/* Causal softmax attention of rows laid end to end, each with itself alone, in bf16 with fp32 sums.

   For processors with AVX-512 BF16; elsewhere `pairs_here` is 0 and the plain products do it. Nothing of the size
   T x T leaves the cache: a few queries at a time see all their keys at once, so that no rescaling is needed. The backward
   pass makes the probabilities again from each query's log of the sum of exponentials.

   The instruction multiplies pairs: 16 lanes, each the sum of two products. So operands are packed in two ways:
   by dims   [group of 16 rows][pair of dims][16 rows]     where sums run over dims (queries with keys);
   by rows   [pair of rows][all dims]                      where sums run over rows (probabilities with values).

   Pieces of work are (row of the batch, head), shared among threads; each gives the same bits wherever it runs. */

#ifndef __AVX512BF16__

int pairs_here(void) { return 0; }
void attention(void) {}
void attention_back(void) {}

#else

#include <math.h>

#include "native_bf16.h"

#define WIDE 64     /* dims that a product takes at once: four registers */
#define QUERIES 16  /* queries at once */
#define SCORES 8    /* of these, rows of scores in registers */

int pairs_here(void) { return 1; }

/* e^x for x <= 0, to 2e-7 of it; 0 far below. */
static inline __m512 exponential(__m512 x) {
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.3981999507e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

/* x: count rows of d, `stride` apart; rows up to the next whole group are 0. */
static void pack_by_dims(const bf16 *x, long stride, long count, long d, int32_t *out) {
    __m512i lane = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(stride * sizeof(bf16)));
    for (long group = 0; group * LANES < count; group++) {
        __mmask16 real = count - group * LANES >= LANES ? 0xffff : (1u << (count - group * LANES)) - 1;
        for (long pair = 0; pair < d / 2; pair++)
            _mm512_store_si512(out + (group * d / 2 + pair) * LANES,
                               _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), real, lane, x + group * LANES * stride + 2 * pair, 1));
    }
}

/* scores[SCORES][wide] = x of SCORES rows (pointers) with keys packed by dims, groups [from, to). */
static inline void score(const bf16 *const *x, const int32_t *keys, long d, long from, long to, float *scores, long wide) {
    long group = from;
    for (; group + 1 < to; group += 2) {
        __m512 sum[SCORES][2];
        for (int j = 0; j < SCORES; j++) sum[j][0] = sum[j][1] = _mm512_setzero_ps();
        const int32_t *first = keys + group * (d / 2) * LANES, *second = first + (d / 2) * LANES;
        for (long pair = 0; pair < d / 2; pair++) {
            __m512i a = _mm512_load_si512(first + pair * LANES), b = _mm512_load_si512(second + pair * LANES);
#pragma GCC unroll 8
            for (int j = 0; j < SCORES; j++) {
                __m512i it = _mm512_set1_epi32(((const int32_t *)x[j])[pair]);
                sum[j][0] = dot(sum[j][0], it, a);
                sum[j][1] = dot(sum[j][1], it, b);
            }
        }
        for (int j = 0; j < SCORES; j++) {
            _mm512_store_ps(scores + j * wide + group * LANES, sum[j][0]);
            _mm512_store_ps(scores + j * wide + (group + 1) * LANES, sum[j][1]);
        }
    }
    if (group < to) {
        __m512 sum[SCORES];
        for (int j = 0; j < SCORES; j++) sum[j] = _mm512_setzero_ps();
        const int32_t *first = keys + group * (d / 2) * LANES;
        for (long pair = 0; pair < d / 2; pair++) {
            __m512i a = _mm512_load_si512(first + pair * LANES);
#pragma GCC unroll 8
            for (int j = 0; j < SCORES; j++) sum[j] = dot(sum[j], _mm512_set1_epi32(((const int32_t *)x[j])[pair]), a);
        }
        for (int j = 0; j < SCORES; j++) _mm512_store_ps(scores + j * wide + group * LANES, sum[j]);
    }
}

/* Four rows of out (pointers, fp32 factors): the sum over key pairs [from, to) of shares (bf16 rows, `wide` apart) times
   values packed by rows. */
static inline void weigh(const bf16 *shares, long wide, const int32_t *values, long d, long from, long to, bf16 *const *out, const float *factor) {
    for (long at = 0; at < d; at += WIDE) {
        __m512 sum[4][4];
        for (int j = 0; j < 4; j++) for (int i = 0; i < 4; i++) sum[j][i] = _mm512_setzero_ps();
        for (long pair = from; pair < to; pair++) {
            const int32_t *its = values + pair * d + at;
            __m512i v0 = _mm512_load_si512(its), v1 = _mm512_load_si512(its + 16), v2 = _mm512_load_si512(its + 32), v3 = _mm512_load_si512(its + 48);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                __m512i it = _mm512_set1_epi32(((const int32_t *)(shares + j * wide))[pair]);
                sum[j][0] = dot(sum[j][0], it, v0);
                sum[j][1] = dot(sum[j][1], it, v1);
                sum[j][2] = dot(sum[j][2], it, v2);
                sum[j][3] = dot(sum[j][3], it, v3);
            }
        }
        for (int j = 0; j < 4; j++)
            if (out[j])
                for (int i = 0; i < 4; i++) store(out[j] + at + i * LANES, _mm512_mul_ps(sum[j][i], _mm512_set1_ps(factor[j])));
    }
}

/* sums[key][d] += over the pairs of QUERIES: shares (packed by rows: [pair][wide]) of each key times x (packed by rows). */
static inline void spread(const int32_t *shares, long wide, const int32_t *x, long d, long from, long to, float *sums) {
    for (long at = 0; at < d; at += WIDE)
        for (long key = from; key < to; key += 4) {
            __m512 sum[4][4];
            for (int j = 0; j < 4; j++) for (int i = 0; i < 4; i++) sum[j][i] = _mm512_load_ps(sums + (key + j) * d + at + i * LANES);
#pragma GCC unroll 8
            for (int pair = 0; pair < QUERIES / 2; pair++) {
                const int32_t *its = x + pair * d + at;
                __m512i x0 = _mm512_load_si512(its), x1 = _mm512_load_si512(its + 16), x2 = _mm512_load_si512(its + 32), x3 = _mm512_load_si512(its + 48);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    __m512i it = _mm512_set1_epi32(shares[pair * wide + key + j]);
                    sum[j][0] = dot(sum[j][0], it, x0);
                    sum[j][1] = dot(sum[j][1], it, x1);
                    sum[j][2] = dot(sum[j][2], it, x2);
                    sum[j][3] = dot(sum[j][3], it, x3);
                }
            }
            for (int j = 0; j < 4; j++) for (int i = 0; i < 4; i++) _mm512_store_ps(sums + (key + j) * d + at + i * LANES, sum[j][i]);
        }
}

/* Which keys query `query` sees, as a mask of the 16 from `key` on. */
static inline __mmask16 seen(long query, long key, long window) {
    long last = query - key + 1, first = window ? query - window + 1 - key : 0;
    __mmask16 below = last >= LANES ? 0xffff : last <= 0 ? 0 : (1u << last) - 1;
    __mmask16 far = first <= 0 ? 0 : first >= LANES ? 0xffff : (1u << first) - 1;
    return below & ~far;
}

/* q, out: (n, heads, d); k, v: (n, kv_heads, d); lse: (n, heads) fp32. Row r is the tokens [starts[r], starts[r + 1]). */
void attention(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, float *lse, const long *starts, long rows, long heads, long kv_heads, long d,
               float scaling, long window, int threads) {
    long group = heads / kv_heads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long work = rows * kv_heads - 1; work >= 0; work--) {
        long start = starts[work / kv_heads], length = starts[work / kv_heads + 1] - start, kv = work % kv_heads, wide = up(length, 2 * LANES);
        int32_t *keys = room(wide * d * 2), *values = room(wide * d * 2);
        float *scores = room(SCORES * wide * 4);
        bf16 *shares = room(SCORES * wide * 2);
        pack_by_dims(k + (start * kv_heads + kv) * d, kv_heads * d, length, d, keys);
        pack_by_rows(v + (start * kv_heads + kv) * d, kv_heads * d, length, wide, d, values);
        for (long head = kv * group; head < (kv + 1) * group; head++)
            for (long query = 0; query < length; query += SCORES) {
                const bf16 *its[SCORES];
                bf16 *to[SCORES];
                float factor[SCORES];
                for (int j = 0; j < SCORES; j++) {
                    long token = start + least(query + j, length - 1);
                    its[j] = q + (token * heads + head) * d;
                    to[j] = query + j < length ? out + (token * heads + head) * d : 0;
                }
                long from = window && query + 1 > window ? (query + 1 - window) / LANES : 0, until = up(least(query + SCORES, length), LANES) / LANES;
                score(its, keys, d, from, until, scores, wide);
                for (int j = 0; j < SCORES; j++) {
                    float *row = scores + j * wide;
                    long at = least(query + j, length - 1);
                    __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
                    for (long i = from; i < until; i++) most = _mm512_mask_max_ps(most, seen(at, i * LANES, window), most, _mm512_load_ps(row + i * LANES));
                    float top = _mm512_reduce_max_ps(most) * scaling;
                    for (long i = from; i < until; i++) {
                        __m512 share = exponential(_mm512_fmsub_ps(_mm512_load_ps(row + i * LANES), _mm512_set1_ps(scaling), _mm512_set1_ps(top)));
                        share = _mm512_maskz_mov_ps(seen(at, i * LANES, window), share);
                        sum = _mm512_add_ps(sum, share);
                        store(shares + j * wide + i * LANES, share);
                    }
                    float all = _mm512_reduce_add_ps(sum);
                    factor[j] = 1.0f / all;
                    lse[(start + at) * heads + head] = top + logf(all);
                }
                weigh(shares, wide, values, d, from * LANES / 2, until * LANES / 2, to, factor);
                weigh(shares + 4 * wide, wide, values, d, from * LANES / 2, until * LANES / 2, to + 4, factor + 4);
            }
        free(keys); free(values); free(scores); free(shares);
    }
}

/* d_q: (n, heads, d) bf16; d_k, d_v: (n, heads, d) fp32, to be summed over the heads that share a key. */
void attention_back(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_out, const float *lse, bf16 *d_q, float *d_k, float *d_v, const long *starts,
                    long rows, long heads, long kv_heads, long d, float scaling, long window, int threads) {
    long group = heads / kv_heads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long work = rows * heads - 1; work >= 0; work--) {
        long start = starts[work / heads], length = starts[work / heads + 1] - start, head = work % heads, kv = head / group, wide = up(length, 2 * LANES);
        int32_t *keys = room(wide * d * 2), *values = room(wide * d * 2), *key_rows = room(wide * d * 2);
        int32_t *queries = room(QUERIES * d * 2), *answers = room(QUERIES * d * 2), *paired = room(QUERIES / 2 * wide * 4), *d_paired = room(QUERIES / 2 * wide * 4);
        float *scores = room(QUERIES * wide * 4), *d_shares = room(QUERIES * wide * 4), *its_d_k = room(wide * d * 4), *its_d_v = room(wide * d * 4);
        bf16 *d_scores = room(QUERIES * wide * 2);
        const float ones[4] = {1, 1, 1, 1};
        memset(its_d_k, 0, wide * d * 4);
        memset(its_d_v, 0, wide * d * 4);
        pack_by_dims(k + (start * kv_heads + kv) * d, kv_heads * d, length, d, keys);
        pack_by_dims(v + (start * kv_heads + kv) * d, kv_heads * d, length, d, values);
        pack_by_rows(k + (start * kv_heads + kv) * d, kv_heads * d, length, wide, d, key_rows);
        for (long query = 0; query < length; query += QUERIES) {
            const bf16 *asked[QUERIES], *told[QUERIES];
            bf16 *to[QUERIES];
            for (int j = 0; j < QUERIES; j++) {
                long token = start + least(query + j, length - 1);
                asked[j] = q + (token * heads + head) * d;
                told[j] = d_out + (token * heads + head) * d;
                to[j] = query + j < length ? d_q + (token * heads + head) * d : 0;
            }
            long from = window && query + 1 > window ? (query + 1 - window) / LANES : 0, until = up(least(query + QUERIES, length), LANES) / LANES;
            for (int j = 0; j < QUERIES; j += SCORES) {
                score(asked + j, keys, d, from, until, scores + j * wide, wide);
                score(told + j, values, d, from, until, d_shares + j * wide, wide);
            }
            for (int j = 0; j < QUERIES; j++) {
                float *share = scores + j * wide, *d_share = d_shares + j * wide;
                long at = query + j;
                int is_real = at < length;
                __m512 below = _mm512_set1_ps(is_real ? lse[(start + at) * heads + head] : 0), sum = _mm512_setzero_ps();
                for (long i = from; i < until; i++) {
                    __m512 its = exponential(_mm512_fmsub_ps(_mm512_load_ps(share + i * LANES), _mm512_set1_ps(scaling), below));
                    its = _mm512_maskz_mov_ps(is_real ? seen(at, i * LANES, window) : 0, its);
                    _mm512_store_ps(share + i * LANES, its);
                    sum = _mm512_fmadd_ps(its, _mm512_load_ps(d_share + i * LANES), sum);
                }
                __m512 all = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
                for (long i = from; i < until; i++) {
                    __m512 its = _mm512_mul_ps(_mm512_load_ps(share + i * LANES), _mm512_sub_ps(_mm512_load_ps(d_share + i * LANES), all));
                    its = _mm512_mul_ps(its, _mm512_set1_ps(scaling));
                    _mm512_store_ps(d_share + i * LANES, its);
                    store(d_scores + j * wide + i * LANES, its);
                }
            }
            for (int j = 0; j < QUERIES; j += 2)
                for (long i = from * LANES; i < until * LANES; i += LANES) {
                    _mm512_store_si512(paired + j / 2 * wide + i, pairs(narrow(_mm512_load_ps(scores + j * wide + i)), narrow(_mm512_load_ps(scores + (j + 1) * wide + i))));
                    _mm512_store_si512(d_paired + j / 2 * wide + i, pairs(narrow(_mm512_load_ps(d_shares + j * wide + i)), narrow(_mm512_load_ps(d_shares + (j + 1) * wide + i))));
                }
            for (int j = 0; j < QUERIES; j += 4) weigh(d_scores + j * wide, wide, key_rows, d, from * LANES / 2, until * LANES / 2, to + j, ones);
            long count = least(QUERIES, length - query);
            pack_by_rows(q + ((start + query) * heads + head) * d, heads * d, count, QUERIES, d, queries);
            pack_by_rows(d_out + ((start + query) * heads + head) * d, heads * d, count, QUERIES, d, answers);
            spread(d_paired, wide, queries, d, from * LANES, until * LANES, its_d_k);
            spread(paired, wide, answers, d, from * LANES, until * LANES, its_d_v);
        }
        for (long token = 0; token < length; token++) {
            memcpy(d_k + ((start + token) * heads + head) * d, its_d_k + token * d, d * 4);
            memcpy(d_v + ((start + token) * heads + head) * d, its_d_v + token * d, d * 4);
        }
        free(keys); free(values); free(key_rows); free(queries); free(answers); free(paired); free(d_paired);
        free(scores); free(d_shares); free(its_d_k); free(its_d_v); free(d_scores);
    }
}

#endif
