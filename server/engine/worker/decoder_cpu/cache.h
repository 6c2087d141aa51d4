/* The two forms that vLLM gives a block of the cache, for one key-value head.
 *
 * Where it computes attention by vectors: keys as (features, tokens), then values as (tokens,
 * features). Where it does so by AMX: keys as (tokens / LANES, pairs of features, LANES, 2), then
 * values as (features / LANES, pairs of tokens, LANES, 2).
 */
#pragma once
#include "../vectors.h"

enum { MOST_HEAD_FEATURES = 256, TOKENS = 2 * LANES };

/* The `count` tokens of a block from `first` on: at most TOKENS. */
typedef struct {
    const uint16_t *block;
    ptrdiff_t features, tokens, first, count;
} part_t;

/* Puts a key and a value into a block. */
static void remember(uint16_t *block, ptrdiff_t features, ptrdiff_t tokens, ptrdiff_t token,
                     const uint16_t *key, const uint16_t *value) {
    for (ptrdiff_t d = 0; d < features; d++) block[d * tokens + token] = key[d];
    memcpy(block + features * tokens + token * features, value, 2 * features);
}

static void remember_pairs(uint16_t *block, ptrdiff_t features, ptrdiff_t tokens, ptrdiff_t token,
                           const uint16_t *key, const uint16_t *value) {
    uint16_t *keys = block + token / LANES * LANES * features + 2 * (token % LANES);
    for (ptrdiff_t d = 0; d < features; d += 2) memcpy(keys + d * LANES, key + d, 4);
    uint16_t *values = block + features * tokens + token / 2 * 2 * LANES + token % 2;
    for (ptrdiff_t d = 0; d < features; d++)
        values[d / LANES * LANES * tokens + 2 * (d % LANES)] = value[d];
}

/* Computes a query's products with the keys of TOKENS tokens. */
static void score_tokens(const part_t *part, const float *query, float *score) {
    vfloat sum[TOKENS / LANES] = {0};
    const uint16_t *keys = part->block + part->first;
    for (ptrdiff_t d = 0; d < part->features; d++, keys += part->tokens)
        for (int i = 0; i < TOKENS / LANES; i++)
            sum[i] += query[d] * load(keys + i * LANES, LANES);
    memcpy(score, sum, sizeof sum);
}

static void score_pairs(const part_t *part, const float *query, float *score) {
    vfloat sum[TOKENS / LANES] = {0};
    const uint32_t *keys = (const uint32_t *)part->block + part->first * part->features / 2;
    for (ptrdiff_t d = 0; d < part->features; d += 2, keys += LANES)
        for (int i = 0; i < TOKENS / LANES; i++) {
            vpair pair = load_pairs(keys + i * LANES * part->features / 2);
            sum[i] += query[d] * first_of(pair);
            sum[i] += query[d + 1] * second_of(pair);
        }
    memcpy(score, sum, sizeof sum);
}

/* Adds the weighted values of the part's tokens to sums of LANES features each. Callers give a
 * constant for `groups`, the number of sums. */
INLINE void add_to(int groups, vfloat *total, const part_t *part, const float *weight) {
    vfloat sum[MOST_HEAD_FEATURES / LANES];
    memcpy(sum, total, groups * sizeof *sum);
    const uint16_t *values = part->block + part->features * (part->tokens + part->first);
    for (ptrdiff_t t = 0; t < part->count; t++, values += groups * LANES)
        for (int g = 0; g < groups; g++) sum[g] += weight[t] * load(values + g * LANES, LANES);
    memcpy(total, sum, groups * sizeof *sum);
}

INLINE void add_pairs_to(int groups, vfloat *total, const part_t *part, const float *weight) {
    vfloat sum[MOST_HEAD_FEATURES / LANES];
    memcpy(sum, total, groups * sizeof *sum);
    ptrdiff_t stride = part->tokens / 2 * LANES;
    const uint32_t *values = (const uint32_t *)(part->block + part->features * part->tokens);
    values += part->first / 2 * LANES;
    ptrdiff_t t = 0;
    for (; t + 1 < part->count; t += 2, values += LANES)
        for (int g = 0; g < groups; g++) {
            vpair pair = load_pairs(values + g * stride);
            sum[g] += weight[t] * first_of(pair);
            sum[g] += weight[t + 1] * second_of(pair);
        }
    /* What stands in the place of the next token isn't this request's, and may be infinite. */
    for (int g = 0; g < groups && t < part->count; g++)
        sum[g] += weight[t] * first_of(load_pairs(values + g * stride));
    memcpy(total, sum, groups * sizeof *sum);
}

#define FOR_GROUPS(add) \
    switch (part->features / LANES) { \
        case 2: add(2, total, part, weight); break; \
        case 4: add(4, total, part, weight); break; \
        case 6: add(6, total, part, weight); break; \
        case 8: add(8, total, part, weight); break; \
        case 16: add(16, total, part, weight); break; \
    }
static void add_values(const part_t *part, const float *weight, vfloat *total) {
    FOR_GROUPS(add_to)
}
static void add_value_pairs(const part_t *part, const float *weight, vfloat *total) {
    FOR_GROUPS(add_pairs_to)
}
#undef FOR_GROUPS
