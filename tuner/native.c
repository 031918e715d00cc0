/* Passes over activations, each in one go: norms, gates, rotary turns, masked softmax, cross-entropy.

   Compiled once on the machine that uses it (native.py) for bf16 and for fp32: this file includes itself with the type
   set. All arithmetic is fp32; each result is rounded once. Rows are shared among threads by position, so the same
   input gives the same bits whatever the number of threads. */

#ifndef T

#include <math.h>
#include <stdint.h>
#include <string.h>

#define GRAIN 16384 /* elements below which a second thread costs more than it brings */

static inline float from_bits(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t to_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

static inline float load_bf16(uint16_t x) { return from_bits((uint32_t)x << 16); }
static inline uint16_t store_bf16(float x) { /* to nearest, ties to even; NaN stays NaN */
    uint32_t bits = to_bits(x);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return x != x ? 0x7fc0 : (uint16_t)rounded;
}
static inline float load_f32(float x) { return x; }
static inline float store_f32(float x) { return x; }

/* e^x, within 2 units in the last place between -87 and 88, and held there outside. */
static inline float exp_(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * from_bits((uint32_t)((int32_t)n + 127) << 23);
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp_(-x)); }

/* tanh(y) = 1 - 2 / (1 + e^2y): good to 1e-7 of 1, which is what the gelu below needs. */
static inline float tanh_(float y) { return 1.0f - 2.0f / (1.0f + exp_(2.0f * y)); }

enum { SILU = 0, GELU_TANH = 1 };

static inline float act(float x, int kind) {
    if (kind == SILU) return x * sigmoid(x);
    return 0.5f * x * (1.0f + tanh_(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

static inline float d_act(float x, int kind) {
    if (kind == SILU) { float s = sigmoid(x); return s * (1.0f + x * (1.0f - s)); }
    float t = tanh_(0.79788456080286536f * (x + 0.044715f * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.79788456080286536f * (1.0f + 3.0f * 0.044715f * x * x);
}

#define T uint16_t
#define LOAD load_bf16
#define STORE store_bf16
#define NAME(name) name##_bf16
#include "native.c"
#undef T
#undef LOAD
#undef STORE
#undef NAME
#define T float
#define LOAD load_f32
#define STORE store_f32
#define NAME(name) name##_f32
#include "native.c"

#else

/* y = x / rms(x) * scale over rows of (n, d). known: inverse holds each row's 1 / rms already.
   twice: round x / rms to the type first, as Llama's norm does. */
void NAME(norm)(const T *x, const float *scale, T *y, float *inverse, long n, long d, float eps, int twice, int known, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n * d > GRAIN)
    for (long row = 0; row < n; row++) {
        const T *its = x + row * d;
        T *out = y + row * d;
        if (!known) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (long i = 0; i < d; i++) { float v = LOAD(its[i]); sum += v * v; }
            inverse[row] = 1.0f / sqrtf(sum / d + eps);
        }
        float by = inverse[row];
        if (twice) {
#pragma omp simd
            for (long i = 0; i < d; i++) out[i] = STORE(LOAD(STORE(LOAD(its[i]) * by)) * scale[i]);
        } else {
#pragma omp simd
            for (long i = 0; i < d; i++) out[i] = STORE(LOAD(its[i]) * by * scale[i]);
        }
    }
}

/* The gradient of x, plus rest where it is not null; d_x may be d_y. */
void NAME(norm_back)(const T *d_y, const T *x, const float *scale, const float *inverse, const T *rest, T *d_x, long n, long d, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n * d > GRAIN)
    for (long row = 0; row < n; row++) {
        const T *its = x + row * d, *from = d_y + row * d, *add = rest ? rest + row * d : 0;
        T *out = d_x + row * d;
        float by = inverse[row], sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < d; i++) sum += LOAD(from[i]) * scale[i] * LOAD(its[i]);
        float shared = sum * by * by / d;
        if (add) {
#pragma omp simd
            for (long i = 0; i < d; i++) out[i] = STORE((LOAD(from[i]) * scale[i] - LOAD(its[i]) * shared) * by + LOAD(add[i]));
        } else {
#pragma omp simd
            for (long i = 0; i < d; i++) out[i] = STORE((LOAD(from[i]) * scale[i] - LOAD(its[i]) * shared) * by);
        }
    }
}

/* One loop for each kind: inside a loop the compiler would compute all of them for every element. */
#define EACH_KIND(body) \
    if (kind == SILU) { enum { KIND = SILU }; _Pragma("omp parallel for simd schedule(static) num_threads(threads) if (count > GRAIN)") body } \
    else { enum { KIND = GELU_TANH }; _Pragma("omp parallel for simd schedule(static) num_threads(threads) if (count > GRAIN)") body }

/* middle = act(gate) * up over count elements. */
void NAME(gate)(const T *gate, const T *up, T *middle, long count, int kind, int threads) {
    EACH_KIND(for (long i = 0; i < count; i++) middle[i] = STORE(act(LOAD(gate[i]), KIND) * LOAD(up[i]));)
}

/* From d_middle, all in place: d_middle becomes d_gate, up d_up, and gate act(gate) * up once more. */
void NAME(gate_back)(T *d_middle, T *gate, T *up, long count, int kind, int threads) {
    EACH_KIND(for (long i = 0; i < count; i++) {
        float g = LOAD(gate[i]);
        float u = LOAD(up[i]);
        float d = LOAD(d_middle[i]);
        float a = act(g, KIND);
        gate[i] = STORE(a * u);
        up[i] = STORE(d * a);
        d_middle[i] = STORE(d * u * d_act(g, KIND));
    })
}
#undef EACH_KIND

/* x (n, heads * d), rows end to end -> out (b, heads, t, d), turned by cos and sin (t, d) where they are not null.
   rows: (b * t) the token of each place; padding repeats a row's last token, and is zero where `empty`. */
void NAME(spread)(const T *x, const long *rows, const float *cos, const float *sin, T *out, long b, long heads, long t, long d, int empty, int threads) {
    long half = d / 2;
#pragma omp parallel for schedule(static) num_threads(threads) if (b * t * heads * d > GRAIN)
    for (long place = 0; place < b * t; place++) {
        long row = place / t, at = place % t;
        int padding = empty && at && rows[place] == rows[place - 1];
        for (long head = 0; head < heads; head++) {
            const T *from = x + (rows[place] * heads + head) * d;
            T *to = out + ((row * heads + head) * t + at) * d;
            if (padding) memset(to, 0, d * sizeof(T));
            else if (!cos) memcpy(to, from, d * sizeof(T));
            else {
                const float *c = cos + at * d, *s = sin + at * d;
#pragma omp simd
                for (long i = 0; i < half; i++) {
                    float first = LOAD(from[i]), second = LOAD(from[half + i]);
                    to[i] = STORE(first * c[i] - second * s[i]);
                    to[half + i] = STORE(second * c[half + i] + first * s[half + i]);
                }
            }
        }
    }
}

/* The way back: block (b, heads, t, d) -> out (n, heads * d), turned back where cos is not null.
   places: (n) each token's place in the block. */
void NAME(gather)(const T *block, const long *places, const float *cos, const float *sin, T *out, long n, long heads, long t, long d, int threads) {
    long half = d / 2;
#pragma omp parallel for schedule(static) num_threads(threads) if (n * heads * d > GRAIN)
    for (long token = 0; token < n; token++) {
        long row = places[token] / t, at = places[token] % t;
        for (long head = 0; head < heads; head++) {
            const T *from = block + ((row * heads + head) * t + at) * d;
            T *to = out + (token * heads + head) * d;
            if (!cos) memcpy(to, from, d * sizeof(T));
            else {
                const float *c = cos + at * d, *s = sin + at * d;
#pragma omp simd
                for (long i = 0; i < half; i++) {
                    float first = LOAD(from[i]), second = LOAD(from[half + i]);
                    to[i] = STORE(first * c[i] + second * s[half + i]);
                    to[half + i] = STORE(second * c[half + i] - first * s[i]);
                }
            }
        }
    }
}

/* x (n, heads, d) turned by the cos and sin (t, d) of each token's place, or back; 0 where the place is below 0. */
void NAME(turn)(const T *x, const long *places, const float *cos, const float *sin, T *out, long n, long heads, long d, int back, int threads) {
    long half = d / 2;
    float sign = back ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static) num_threads(threads) if (n * heads * d > GRAIN)
    for (long token = 0; token < n; token++) {
        if (places[token] < 0) { memset(out + token * heads * d, 0, heads * d * sizeof(T)); continue; }
        const float *c = cos + places[token] * d, *s = sin + places[token] * d;
        for (long head = 0; head < heads; head++) {
            const T *from = x + (token * heads + head) * d;
            T *to = out + (token * heads + head) * d;
            const float *first_sin = back ? s + half : s, *second_sin = back ? s : s + half;
#pragma omp simd
            for (long i = 0; i < half; i++) {
                float first = LOAD(from[i]), second = LOAD(from[half + i]);
                to[i] = STORE(first * c[i] - sign * second * first_sin[i]);
                to[half + i] = STORE(second * c[half + i] + sign * first * second_sin[i]);
            }
        }
    }
}

/* parts (n, heads, d) fp32, summed over the heads that share a key -> out (n, kv_heads, d), turned back where cos is not
   null; 0 where the place is below 0. */
void NAME(sum_heads)(const float *parts, const long *places, const float *cos, const float *sin, T *out, long n, long heads, long kv_heads, long d, int threads) {
    long half = d / 2, group = heads / kv_heads;
#pragma omp parallel for schedule(static) num_threads(threads) if (n * heads * d > GRAIN)
    for (long token = 0; token < n; token++) {
        if (places[token] < 0) { memset(out + token * kv_heads * d, 0, kv_heads * d * sizeof(T)); continue; }
        for (long kv = 0; kv < kv_heads; kv++) {
            const float *from = parts + (token * heads + kv * group) * d;
            T *to = out + (token * kv_heads + kv) * d;
            float sum[d];
#pragma omp simd
            for (long i = 0; i < d; i++) sum[i] = from[i];
            for (long head = 1; head < group; head++) {
#pragma omp simd
                for (long i = 0; i < d; i++) sum[i] += from[head * d + i];
            }
            if (!cos) {
#pragma omp simd
                for (long i = 0; i < d; i++) to[i] = STORE(sum[i]);
                continue;
            }
            const float *c = cos + places[token] * d, *s = sin + places[token] * d;
#pragma omp simd
            for (long i = 0; i < half; i++) {
                to[i] = STORE(sum[i] * c[i] + sum[half + i] * s[half + i]);
                to[half + i] = STORE(sum[half + i] * c[half + i] - sum[i] * s[i]);
            }
        }
    }
}

/* Which keys query `at` sees: from first up to end. The loops run from low to high, whole vectors wherever there is room
   in the row: what is not seen is masked, since the odd ends of loops cost as much as all the rest. */
#define SEEN \
    long at = (row % queries) + before, end = at + 1 < keys ? at + 1 : keys, first = window && at + 1 > window ? at + 1 - window : 0, \
         low = first & ~15L, high = (end + 15 & ~15L) < keys ? (end + 15 & ~15L) : keys;

/* Softmax in place over scores (n, keys) times scaling, each row over the keys that it sees; 0 elsewhere.
   Rows come in runs of `queries`; the first of a run stands at key `before`. */
void NAME(softmax)(T *scores, long n, long queries, long keys, long before, long window, float scaling, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n * keys > GRAIN)
    for (long row = 0; row < n; row++) {
        SEEN
        T *its = scores + row * keys;
        float most = -INFINITY, sum = 0, shares[keys];
#pragma omp simd reduction(max : most)
        for (long i = low; i < high; i++) {
            float v = i < first || i >= end ? -INFINITY : LOAD(its[i]) * scaling;
            shares[i] = v;
            most = v > most ? v : most;
        }
#pragma omp simd reduction(+ : sum)
        for (long i = low; i < high; i++) {
            float v = i < first || i >= end ? 0 : exp_(shares[i] - most);
            shares[i] = v;
            sum += v;
        }
        float by = 1.0f / sum;
        memset(its, 0, low * sizeof(T));
#pragma omp simd
        for (long i = low; i < high; i++) its[i] = STORE(shares[i] * by);
        memset(its + high, 0, (keys - high) * sizeof(T));
    }
}

/* d_p becomes the gradient of the products before scaling; p is 0 where nothing is seen. */
void NAME(softmax_back)(const T *p, T *d_p, long n, long queries, long keys, long before, long window, float scaling, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n * keys > GRAIN)
    for (long row = 0; row < n; row++) {
        SEEN
        const T *its = p + row * keys;
        T *d = d_p + row * keys;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long i = low; i < high; i++) sum += LOAD(its[i]) * LOAD(d[i]);
        memset(d, 0, low * sizeof(T));
#pragma omp simd
        for (long i = low; i < high; i++) d[i] = STORE(LOAD(its[i]) * (LOAD(d[i]) - sum) * scaling);
        memset(d + high, 0, (keys - high) * sizeof(T));
    }
}
#undef SEEN

/* losses = -log softmax(logits)[target]; logits (n, v) become their gradient. A target below 0 has none. */
void NAME(cross_entropy)(T *logits, const long *targets, float *losses, long n, long v, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n * v > GRAIN)
    for (long row = 0; row < n; row++) {
        T *its = logits + row * v;
        if (targets[row] < 0) { memset(its, 0, v * sizeof(T)); losses[row] = 0; continue; }
        float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
        for (long i = 0; i < v; i++) { float x = LOAD(its[i]); most = x > most ? x : most; }
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < v; i++) sum += exp_(LOAD(its[i]) - most);
        float wanted = LOAD(its[targets[row]]) - most, by = 1.0f / sum;
        losses[row] = logf(sum) - wanted;
#pragma omp simd
        for (long i = 0; i < v; i++) its[i] = STORE(exp_(LOAD(its[i]) - most) * by);
        its[targets[row]] = STORE(exp_(wanted) * by - 1.0f);
    }
}

#endif
