// A few tokens' products with a whole matrix of weights, in fp32: what an answer is made of. Each weight is read once for all of
// them, so the products take as long as the memory does; a library that lays the matrix out anew first takes several times that.
// A token's sum has one order, however many stand beside it: an answer is the same alone and in company.

// Compilers fuse a product and a sum, which round once then, for some numbers of tokens and not for others.
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif

#include <omp.h>
#include <string.h>

#define MOST 8

typedef float vector __attribute__((vector_size(32)));
#define LANES 8

static inline vector load(const float *from) {
    vector found;
    memcpy(&found, from, sizeof found);
    return found;
}

// The last few numbers of a row, and zeros behind them.
static inline vector load_rest(const float *from, long count) {
    vector found = {0};
    memcpy(&found, from, count * sizeof(float));
    return found;
}

static inline float total(vector its) {
    return ((its[0] + its[4]) + (its[2] + its[6])) + ((its[1] + its[5]) + (its[3] + its[7]));
}

// y[m * outputs + o] = x[m] . w[o] for `count` tokens, which is known when this is compiled.
static inline __attribute__((always_inline)) void dot(const float *x, const float *w, float *y, long outputs, long inputs, const int count) {
    vector sums[MOST];
    for (int m = 0; m < count; m++) sums[m] = (vector){0};
    long i = 0;
    for (; i + LANES <= inputs; i += LANES) {
        vector weights = load(w + i);
        for (int m = 0; m < count; m++) sums[m] += weights * load(x + m * inputs + i);
    }
    if (i < inputs) {
        vector weights = load_rest(w + i, inputs - i);
        for (int m = 0; m < count; m++) sums[m] += weights * load_rest(x + m * inputs + i, inputs - i);
    }
    for (int m = 0; m < count; m++) y[m * outputs] = total(sums[m]);
}

// (rows, inputs) by (outputs, inputs)^T into (rows, outputs).
void few_rows(const float *x, const float *w, float *y, long rows, long outputs, long inputs, int threads) {
#pragma omp parallel num_threads(threads)
    for (long first = 0; first < rows; first += MOST) {
        const float *from = x + first * inputs;
        float *to = y + first * outputs;
        int count = rows - first < MOST ? (int)(rows - first) : MOST;
#pragma omp for schedule(static)
        for (long o = 0; o < outputs; o++) {
            const float *weights = w + o * inputs;
            switch (count) {
                case 1: dot(from, weights, to + o, outputs, inputs, 1); break;
                case 2: dot(from, weights, to + o, outputs, inputs, 2); break;
                case 3: dot(from, weights, to + o, outputs, inputs, 3); break;
                case 4: dot(from, weights, to + o, outputs, inputs, 4); break;
                case 5: dot(from, weights, to + o, outputs, inputs, 5); break;
                case 6: dot(from, weights, to + o, outputs, inputs, 6); break;
                case 7: dot(from, weights, to + o, outputs, inputs, 7); break;
                default: dot(from, weights, to + o, outputs, inputs, 8);
            }
        }
    }
}
