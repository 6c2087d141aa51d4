/* Computes LoRA on the rows of a batch, each with its own adapter: y[row] += B (scale * A x[row]).
 *
 * One call handles all adapters of a layer: in decoding, where few rows share an adapter, and in
 * prompts, where many rows share one. Weights and activations are bfloat16, sums are float32, and
 * A x is rounded to bfloat16, as in a matrix product. Both products take numbers in pairs (see
 * vectors.h), and packing.py stores them so.
 */
#pragma once
#include "../vectors.h"

enum { BLOCK_ROWS = 8, SHRINK_ROWS = 4, CHAINS = 4 };
enum { COLUMN_CHUNK = 512, PARALLEL_WORK = 250000 };

/* Up to BLOCK_ROWS rows of one slot. The rest of `row` repeats the last one. */
typedef struct { int32_t slot, count, row[BLOCK_ROWS]; } block_t;

/* One adapter in one layer. The ranks of the projections follow each other. Each projection's are
 * padded to a multiple of 2, and all together to a multiple of LANES. For each LANES ranks A has
 * (pairs of features, LANES, 2). For each projection B has (pairs of ranks, width padded to LANES,
 * 2). */
typedef struct { const uint32_t *a, *b; int64_t size, ranks; const int64_t *rank; } adapter_t;

/* A layer. `in` and `width` are features in, and out of each projection; `max_ranks` is the largest
 * padded `ranks`. */
typedef struct {
    int64_t in, max_ranks, projections;
    const int64_t *width;
    const adapter_t *const *adapter; /* by slot, null if it is empty */
} layer_t;

/* Adds the products of both halves of each lane to `sum`. */
INLINE vfloat dot2(vfloat sum, vpair a, vpair b) {
#ifdef __AVX512BF16__
    return (vfloat)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    return sum + first_of(a) * first_of(b) + second_of(a) * second_of(b);
#endif
}

/* Returns the pair at `from` in every lane. With `only_first` its second half doesn't exist. */
INLINE vpair broadcast(const uint16_t *from, int only_first) {
    uint32_t pair = 0;
    memcpy(&pair, from, only_first ? 2 : 4);
    return (vpair){0} + pair;
}

/* Computes u[m] = scale * A x[m] for LANES ranks. Callers give a constant for `rows`. There are as
 * many independent sums as the processor needs to be busy, and as many for any number of rows: a
 * row's result is the same whatever other rows are in the batch. */
INLINE void shrink(int rows, uint16_t *u, ptrdiff_t u_stride,
                   const uint16_t *const *x, const uint32_t *a, ptrdiff_t in, float scale) {
    vfloat sum[CHAINS][SHRINK_ROWS] = {0};
    ptrdiff_t pairs = in / 2, p = 0;
    for (; p + CHAINS <= pairs; p += CHAINS)
        for (int c = 0; c < CHAINS; c++) {
            vpair weights = load_pairs(a + (p + c) * LANES);
            for (int m = 0; m < rows; m++)
                sum[c][m] = dot2(sum[c][m], broadcast(x[m] + 2 * (p + c), 0), weights);
        }
    for (; 2 * p < in; p++)
        for (int m = 0; m < rows; m++)
            sum[0][m] = dot2(sum[0][m], broadcast(x[m] + 2 * p, 2 * p + 1 == in),
                             load_pairs(a + p * LANES));
    for (int m = 0; m < rows; m++) {
        for (int c = 1; c < CHAINS; c++) sum[0][m] += sum[c][m];
        store(u + m * u_stride, scale * sum[0][m], LANES);
    }
}

/* Computes y[m][:first + second] += B u[m] for some columns. `width` is B's padded width. */
INLINE void expand_columns(int rows, uint16_t *const *y, ptrdiff_t column, const uint16_t *u,
                           ptrdiff_t u_stride, const uint32_t *b, ptrdiff_t width, int64_t rank,
                           ptrdiff_t first, ptrdiff_t second) {
    vfloat sum[BLOCK_ROWS][2] = {0};
    for (int m = 0; m < rows; m++) {
        sum[m][0] = load(y[m] + column, first);
        if (second) sum[m][1] = load(y[m] + column + LANES, second);
    }
    for (int64_t k = 0; k < rank; k += 2, b += width) {
        vpair low = load_pairs(b), high = second ? load_pairs(b + LANES) : (vpair){0};
        for (int m = 0; m < rows; m++) {
            vpair shrunk = broadcast(u + m * u_stride + k, 0);
            sum[m][0] = dot2(sum[m][0], shrunk, low);
            if (second) sum[m][1] = dot2(sum[m][1], shrunk, high);
        }
    }
    for (int m = 0; m < rows; m++) {
        store(y[m] + column, sum[m][0], first);
        if (second) store(y[m] + column + LANES, sum[m][1], second);
    }
}

INLINE void expand(int rows, uint16_t *const *y, const uint16_t *u, ptrdiff_t u_stride,
                   const uint32_t *b, ptrdiff_t width, int64_t rank, ptrdiff_t count) {
    ptrdiff_t j = 0;
    for (; j + 2 * LANES <= count; j += 2 * LANES)
        expand_columns(rows, y, j, u, u_stride, b + j, width, rank, LANES, LANES);
    if (j < count) {
        ptrdiff_t left = count - j, second = left > LANES ? left - LANES : 0;
        expand_columns(rows, y, j, u, u_stride, b + j, width, rank, left - second, second);
    }
}

static ptrdiff_t chunks_of(ptrdiff_t width) { return (width + COLUMN_CHUNK - 1) / COLUMN_CHUNK; }

static void shrink_block(const layer_t *layer, const adapter_t *adapter, const block_t *block,
                         uint16_t *u, const uint16_t *x, ptrdiff_t x_stride, ptrdiff_t rank,
                         float scale) {
    const uint16_t *row[BLOCK_ROWS];
    for (int m = 0; m < BLOCK_ROWS; m++) row[m] = x + block->row[m] * x_stride;
    ptrdiff_t in = layer->in, u_stride = layer->max_ranks;
    const uint32_t *a = adapter->a + rank * ((in + 1) / 2);
    u += rank;
    for (int m = 0; m < block->count; m += SHRINK_ROWS, u += SHRINK_ROWS * u_stride)
        switch (block->count - m) {
            case 1: shrink(1, u, u_stride, row + m, a, in, scale); break;
            case 2: shrink(2, u, u_stride, row + m, a, in, scale); break;
            default: shrink(SHRINK_ROWS, u, u_stride, row + m, a, in, scale);
        }
}

static void expand_block(const layer_t *layer, const adapter_t *adapter, const block_t *block,
                         const uint16_t *u, uint16_t *y, ptrdiff_t y_stride, ptrdiff_t chunk) {
    const uint32_t *b = adapter->b;
    for (int64_t p = 0; p < layer->projections; p++) {
        ptrdiff_t width = layer->width[p], chunks = chunks_of(width);
        ptrdiff_t padded = (width + LANES - 1) / LANES * LANES;
        int64_t rank = adapter->rank[p];
        if (chunk < chunks) {
            ptrdiff_t begin = chunk * COLUMN_CHUNK, count = width - begin;
            if (count > COLUMN_CHUNK) count = COLUMN_CHUNK;
            if (!rank) return;
            uint16_t *row[BLOCK_ROWS];
            for (int m = 0; m < BLOCK_ROWS; m++) row[m] = y + block->row[m] * y_stride + begin;
            ptrdiff_t u_stride = layer->max_ranks;
            b += begin;
            switch (block->count) { /* the exact number, as a padded row must not be added twice */
#define ROWS(n) case n: expand(n, row, u, u_stride, b, padded, rank, count); return
                ROWS(1); ROWS(2); ROWS(3); ROWS(4); ROWS(5); ROWS(6); ROWS(7); ROWS(8);
            }
        }
        chunk -= chunks;
        y += width;
        u += rank;
        b += rank / 2 * padded;
    }
}

/* Computes u for all blocks. Each thread of a team calls it, or one thread alone. `expand_blocks`
 * may begin when all are through. */
static void shrink_blocks(const layer_t *layer, const uint16_t *x, int64_t x_stride,
                          const block_t *block, int64_t blocks, float scale, uint16_t *u) {
    ptrdiff_t u_block = BLOCK_ROWS * layer->max_ranks;
#pragma omp for collapse(2) nowait
    for (int64_t i = 0; i < blocks; i++)
        for (ptrdiff_t r = 0; r < layer->max_ranks; r += LANES) {
            const adapter_t *adapter = layer->adapter[block[i].slot];
            if (r < adapter->ranks)
                shrink_block(layer, adapter, &block[i], u + i * u_block, x, x_stride, r, scale);
        }
}

/* Adds B u to y for all blocks, as `shrink_blocks`. */
static void expand_blocks(const layer_t *layer, uint16_t *y, int64_t y_stride,
                          const block_t *block, int64_t blocks, const uint16_t *u) {
    ptrdiff_t u_block = BLOCK_ROWS * layer->max_ranks, chunks = 0;
    for (int64_t p = 0; p < layer->projections; p++) chunks += chunks_of(layer->width[p]);
#pragma omp for collapse(2) nowait
    for (int64_t i = 0; i < blocks; i++)
        for (ptrdiff_t c = 0; c < chunks; c++)
            expand_block(layer, layer->adapter[block[i].slot], &block[i], u + i * u_block, y,
                         y_stride, c);
}
