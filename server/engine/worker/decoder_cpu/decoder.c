/* Computes a decoder of Llama's shape for the new tokens of some requests, in one call.
 *
 * Between the products of a step stand many small operations. If each is a call, most of the step's
 * time goes into calling them and into waking threads. Here a team of threads computes all layers.
 * Numbers are rounded to bfloat16 where vLLM rounds them.
 */
#include "../linear_cpu/linear.h"
#include "../lora_cpu/rows.h"
#include "barrier.h"
#include "cache.h"
#include "vector_exp.h"
#include <math.h>
#include <omp.h>

typedef struct {
    linear_t product;
    const layer_t *adapters; /* or null */
} projection_t;

typedef struct {
    projection_t qkv, attended, gate_up, down;
    const uint16_t *norm, *mlp_norm; /* weights (hidden) */
    uint16_t *cache;                 /* the first block's keys */
} decoder_layer_t;

/* A block of the cache has for each key-value head keys, then values, in one of the forms of
 * `cache.h`. */
typedef struct {
    int64_t num_layers, hidden, heads, kv_heads, head_features, inner;
    int64_t block_tokens, block_stride, has_pairs, rotary;
    float epsilon, scale;
    const uint16_t *cos_sin; /* for each position: cosines (rotary / 2), sines */
    const uint16_t *norm;
    const decoder_layer_t *layers;
} decoder_t;

typedef struct {
    int64_t rows;
    const int64_t *position, *slot; /* of each row: where its key and value go in the cache */
    const int32_t *length, *table;  /* of each row: tokens up to it, blocks of the cache */
    int64_t table_stride;
    const block_t *blocks; /* rows by adapter */
    int64_t num_blocks;
} batch_t;

/* Working memory for all rows. `halves` are the inputs of a product in bfloat16, and `factors` the
 * same in float32, for processors that can't multiply bfloat16. */
typedef struct {
    uint16_t *x, *halves, *qkv, *wide, *u;
    float *factors;
} work_t;

/* The inputs of a product, as it reads them. */
INLINE const number *inputs(const work_t *work) {
#ifdef __AVX512BF16__
    return work->halves;
#else
    return work->factors;
#endif
}

INLINE float to_float(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Rounds `value` and writes it as an input. */
INLINE void put(const work_t *work, ptrdiff_t at, vfloat value) {
    store(work->halves + at, value, LANES);
#ifndef __AVX512BF16__
    vfloat rounded = load(work->halves + at, LANES);
    memcpy(work->factors + at, &rounded, sizeof rounded);
#endif
}

INLINE float sum_of(vfloat value) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += value[i];
    return sum;
}

/* Adds `delta` (or nothing) to a row of the residual stream, and normalizes it. */
static void normalize(const decoder_t *decoder, const work_t *work, ptrdiff_t row,
                      const uint16_t *delta, const uint16_t *weight) {
    ptrdiff_t hidden = decoder->hidden;
    uint16_t *x = work->x + row * hidden;
    vfloat squares = {0};
    for (ptrdiff_t i = 0; i < hidden; i += LANES) {
        vfloat value = load(x + i, LANES);
        if (delta) {
            value += load(delta + row * hidden + i, LANES);
            store(x + i, value, LANES);
        }
        squares += value * value;
    }
    float factor = 1 / sqrtf(sum_of(squares) / hidden + decoder->epsilon);
    for (ptrdiff_t i = 0; i < hidden; i += LANES)
        put(work, row * hidden + i, load(x + i, LANES) * factor * load(weight + i, LANES));
}

/* Computes y = x W + bias, and adds the rows' adapters. All threads are through when it returns. */
static void project(const projection_t *projection, const batch_t *batch, const work_t *work,
                    uint16_t *y, barrier_t *barrier) {
    const linear_t *product = &projection->product;
    const layer_t *adapters = batch->num_blocks ? projection->adapters : 0;
    ptrdiff_t in = product->in, out = product->out;
    compute(product, inputs(work), in, y, out, batch->rows);
    if (adapters)
        shrink_blocks(adapters, work->halves, in, batch->blocks, batch->num_blocks, 1, work->u);
    meet(barrier);
    if (!adapters) return;
    expand_blocks(adapters, y, out, batch->blocks, batch->num_blocks, work->u);
    meet(barrier);
}

/* Turns a head's first `rotary` features by its position. */
static void rotate(uint16_t *head, const uint16_t *cos_sin, ptrdiff_t rotary) {
    ptrdiff_t half = rotary / 2;
    for (ptrdiff_t i = 0; i < half; i += LANES) {
        ptrdiff_t count = half - i < LANES ? half - i : LANES;
        vfloat cosine = load(cos_sin + i, count), sine = load(cos_sin + half + i, count);
        vfloat first = load(head + i, count), second = load(head + half + i, count);
        store(head + i, first * cosine - second * sine, count);
        store(head + half + i, second * cosine + first * sine, count);
    }
}

/* What a query has seen so far of its keys. */
typedef struct {
    float largest, sum;
    vfloat value[MOST_HEAD_FEATURES / LANES];
} seen_t;

/* Forgets the scores of tokens from `count` on, which don't exist, and returns the largest. */
static float largest_score(float *score, ptrdiff_t count) {
    for (ptrdiff_t t = count; t < TOKENS; t++) score[t] = -INFINITY;
    float largest = score[0];
    for (ptrdiff_t t = 1; t < count; t++) largest = fmaxf(largest, score[t]);
    return largest;
}

/* Replaces scores by exp(score - largest), and returns the sum of those. */
static float weigh_tokens(float *score, float largest) {
    float sum = 0;
    for (int i = 0; i < TOKENS / LANES; i++) {
        vfloat weight;
        memcpy(&weight, score + i * LANES, sizeof weight);
        weight = vector_exp(weight - largest);
        memcpy(score + i * LANES, &weight, sizeof weight);
        sum += sum_of(weight);
    }
    return sum;
}

/* Looks at the first `count` tokens of a block: a softmax that is corrected with each part. */
static void attend_block(const decoder_t *decoder, const uint16_t *block, ptrdiff_t count,
                         const float *query, seen_t *seen) {
    const part_t all = {block, decoder->head_features, decoder->block_tokens, 0, 0};
    for (ptrdiff_t first = 0; first < count; first += TOKENS) {
        float weight[TOKENS];
        part_t part = all;
        part.first = first;
        part.count = count - first < TOKENS ? count - first : TOKENS;
        if (decoder->has_pairs) score_pairs(&part, query, weight);
        else score_tokens(&part, query, weight);
        float largest = fmaxf(largest_score(weight, part.count), seen->largest);
        float shrink = expf(seen->largest - largest);
        seen->largest = largest;
        seen->sum = seen->sum * shrink + weigh_tokens(weight, largest);
        for (int g = 0; g < part.features / LANES; g++) seen->value[g] *= shrink;
        if (decoder->has_pairs) add_value_pairs(&part, weight, seen->value);
        else add_values(&part, weight, seen->value);
    }
}

/* Turns a row's key, and puts it and the value into the cache. */
static void remember_row(const decoder_t *decoder, const decoder_layer_t *layer,
                         const batch_t *batch, const work_t *work, ptrdiff_t row,
                         ptrdiff_t kv_head) {
    ptrdiff_t features = decoder->head_features, tokens = decoder->block_tokens;
    ptrdiff_t heads = decoder->heads, kv_heads = decoder->kv_heads;
    uint16_t *key = work->qkv + row * (heads + 2 * kv_heads) * features;
    key += (heads + kv_head) * features;
    uint16_t *cache = layer->cache + kv_head * 2 * features * tokens;
    int64_t slot = batch->slot[row];

    rotate(key, decoder->cos_sin + batch->position[row] * decoder->rotary, decoder->rotary);
    /* vLLM's trial steps have rows that belong nowhere. */
    if (slot < 0) return;
    uint16_t *block = cache + slot / tokens * decoder->block_stride;
    const uint16_t *value = key + kv_heads * features;
    if (decoder->has_pairs) remember_pairs(block, features, tokens, slot % tokens, key, value);
    else remember(block, features, tokens, slot % tokens, key, value);
}

/* Attention of the query heads that share a row's key-value head. The keys and values of all rows
 * are in the cache. */
static void attend(const decoder_t *decoder, const decoder_layer_t *layer, const batch_t *batch,
                   const work_t *work, ptrdiff_t row, ptrdiff_t kv_head) {
    ptrdiff_t features = decoder->head_features, tokens = decoder->block_tokens;
    ptrdiff_t heads = decoder->heads, kv_heads = decoder->kv_heads, sharing = heads / kv_heads;
    uint16_t *query = work->qkv + row * (heads + 2 * kv_heads) * features;
    query += kv_head * sharing * features;
    const uint16_t *cos_sin = decoder->cos_sin + batch->position[row] * decoder->rotary;
    const uint16_t *cache = layer->cache + kv_head * 2 * features * tokens;

    for (ptrdiff_t h = 0; h < sharing; h++) {
        float scaled[MOST_HEAD_FEATURES];
        seen_t seen = {.largest = -INFINITY};
        rotate(query + h * features, cos_sin, decoder->rotary);
        for (ptrdiff_t d = 0; d < features; d++)
            scaled[d] = to_float(query[h * features + d]) * decoder->scale;
        const int32_t *table = batch->table + row * batch->table_stride;
        for (ptrdiff_t left = batch->length[row]; left > 0; left -= tokens, table++)
            attend_block(decoder, cache + *table * decoder->block_stride,
                         left < tokens ? left : tokens, scaled, &seen);
        ptrdiff_t at = row * heads * features + (kv_head * sharing + h) * features;
        for (ptrdiff_t d = 0; d < features / LANES; d++)
            put(work, at + d * LANES, seen.value[d] / seen.sum);
    }
}

/* Writes silu(gate) * up of a part of a row. */
static void activate(const decoder_t *decoder, const work_t *work, ptrdiff_t row, ptrdiff_t at) {
    ptrdiff_t inner = decoder->inner;
    const uint16_t *gate = work->wide + row * 2 * inner;
    vfloat x = load(gate + at, LANES);
    put(work, row * inner + at, x / (1 + vector_exp(-x)) * load(gate + inner + at, LANES));
}

static void compute_layer(const decoder_t *decoder, const decoder_layer_t *layer,
                          const batch_t *batch, const work_t *work, const uint16_t *delta,
                          barrier_t *barrier) {
#pragma omp for nowait
    for (int64_t row = 0; row < batch->rows; row++)
        normalize(decoder, work, row, delta, layer->norm);
    meet(barrier);
    project(&layer->qkv, batch, work, work->qkv, barrier);
#pragma omp for collapse(2) nowait
    for (int64_t row = 0; row < batch->rows; row++)
        for (int64_t head = 0; head < decoder->kv_heads; head++)
            remember_row(decoder, layer, batch, work, row, head);
    meet(barrier);
#pragma omp for collapse(2) schedule(static, 1) nowait
    for (int64_t row = 0; row < batch->rows; row++)
        for (int64_t head = 0; head < decoder->kv_heads; head++)
            attend(decoder, layer, batch, work, row, head);
    meet(barrier);
    project(&layer->attended, batch, work, work->wide, barrier);
#pragma omp for nowait
    for (int64_t row = 0; row < batch->rows; row++)
        normalize(decoder, work, row, work->wide, layer->mlp_norm);
    meet(barrier);
    project(&layer->gate_up, batch, work, work->wide, barrier);
#pragma omp for collapse(2) nowait
    for (int64_t row = 0; row < batch->rows; row++)
        for (int64_t at = 0; at < decoder->inner; at += LANES)
            activate(decoder, work, row, at);
    meet(barrier);
    project(&layer->down, batch, work, work->wide, barrier);
}

/* Returns the slot + 1 of a block whose slot is empty in a layer, or 0. */
static int64_t empty_slot(const decoder_t *decoder, const batch_t *batch) {
    for (int64_t l = 0; l < decoder->num_layers; l++) {
        const decoder_layer_t *layer = &decoder->layers[l];
        const projection_t *each[] = {&layer->qkv, &layer->attended, &layer->gate_up, &layer->down};
        for (int i = 0; i < 4; i++)
            for (int64_t b = 0; b < batch->num_blocks && each[i]->adapters; b++)
                if (!each[i]->adapters->adapter[batch->blocks[b].slot])
                    return batch->blocks[b].slot + 1;
    }
    return 0;
}

/* Computes all layers and the last norm. `work->x` has the embeddings (rows, hidden), and in the
 * end `work->halves` has the result. Returns 0, or the slot + 1 of a block whose slot is empty; then
 * nothing is computed. */
int64_t decode(const decoder_t *decoder, const batch_t *batch, const work_t *work) {
    int64_t empty = empty_slot(decoder, batch);
    if (empty) return empty;
    static patience_t patience;
    barrier_t barrier = {.patience = &patience};
    begin_step(&patience);
#pragma omp parallel
    {
#pragma omp single
        barrier.threads = omp_get_num_threads();
        for (int64_t l = 0; l < decoder->num_layers; l++)
            compute_layer(decoder, &decoder->layers[l], batch, work, l ? work->wide : 0, &barrier);
#pragma omp for
        for (int64_t row = 0; row < batch->rows; row++)
            normalize(decoder, work, row, work->wide, decoder->norm);
    }
    return 0;
}
