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

/* One adapter in one layer. The ranks of the projections follow each other, and each projection's
 * are padded to a multiple of 2. A is stored in groups of 16, 8, 4 or 2 ranks, the widest that fit
 * first. Its features are padded to a multiple of LANES. A vector holds as many pairs of features
 * of each of the group's ranks as there is room for: a group has (vectors, ranks, pairs in a
 * vector, 2). For each projection B has (pairs of ranks, width padded to LANES, 2). */
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

/* Returns how many ranks stand together in the group that begins `left` ranks before the end. */
INLINE ptrdiff_t group_width(ptrdiff_t left) {
    return left >= 16 ? 16 : left >= 8 ? 8 : left >= 4 ? 4 : 2;
}

/* Returns the pairs at `from`, each as often as its group of A has ranks: LANES / ranks pairs, then
 * the same again. Callers give a constant for `ranks`. */
INLINE vpair repeat(const uint16_t *from, int ranks) {
    if (ranks == 16) return one_pair(from);
    if (ranks == 8) return two_pairs(from);
    return ranks == 4 ? four_pairs(from) : eight_pairs(from);
}

/* Adds the sums of a rank's pairs, which stand side by side. The ranks' sums are then the first
 * lanes. */
INLINE vfloat sum_pairs(vfloat sum, int ranks) {
    for (int lanes = LANES; lanes > ranks; lanes /= 2)
        sum = __builtin_shufflevector(sum, sum, 0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12,
                                      14) +
              __builtin_shufflevector(sum, sum, 1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13,
                                      15);
    return sum;
}

/* Computes u[m] = scale * A x[m] for a group of ranks. Callers give constants for `ranks` and
 * `rows`. There are as many independent sums as the processor needs to be busy, and as many for any
 * number of rows: a row's result is the same whatever other rows are in the batch. */
INLINE void shrink(int ranks, int rows, uint16_t *u, ptrdiff_t u_stride, const uint16_t *const *x,
                   const uint32_t *a, ptrdiff_t in, float scale) {
    vfloat sum[CHAINS][SHRINK_ROWS] = {0};
    ptrdiff_t step = 2 * LANES / ranks, i = 0; /* features in a vector */
    for (; i + CHAINS * step <= in; i += CHAINS * step)
        for (int c = 0; c < CHAINS; c++, a += LANES) {
            vpair weights = load_pairs(a);
            for (int m = 0; m < rows; m++)
                sum[c][m] = dot2(sum[c][m], repeat(x[m] + i + c * step, ranks), weights);
        }
    for (; i < in; i += step, a += LANES)
        for (int m = 0; m < rows; m++) {
            uint16_t rest[LANES] = {0}; /* the last features don't fill a vector */
            memcpy(rest, x[m] + i, 2 * (in - i < step ? in - i : step));
            sum[0][m] = dot2(sum[0][m], repeat(rest, ranks), load_pairs(a));
        }
    for (int m = 0; m < rows; m++) {
        for (int c = 1; c < CHAINS; c++) sum[0][m] += sum[c][m];
        store(u + m * u_stride, scale * sum_pairs(sum[0][m], ranks), ranks);
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
            vpair shrunk = one_pair(u + m * u_stride + k);
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

INLINE ptrdiff_t padded(ptrdiff_t number) { return (number + LANES - 1) / LANES * LANES; }

static ptrdiff_t chunks_of(ptrdiff_t width) { return (width + COLUMN_CHUNK - 1) / COLUMN_CHUNK; }

/* Computes u for a group of ranks and the block's rows. */
INLINE void shrink_group(int ranks, ptrdiff_t count, uint16_t *u, ptrdiff_t u_stride,
                         const uint16_t *const *x, const uint32_t *a, ptrdiff_t in, float scale) {
    for (; count > 0; count -= SHRINK_ROWS, x += SHRINK_ROWS, u += SHRINK_ROWS * u_stride)
        switch (count) {
            case 1: shrink(ranks, 1, u, u_stride, x, a, in, scale); break;
            case 2: shrink(ranks, 2, u, u_stride, x, a, in, scale); break;
            default: shrink(ranks, SHRINK_ROWS, u, u_stride, x, a, in, scale);
        }
}

/* Computes u for LANES ranks at most, from `rank` on. */
static void shrink_block(const layer_t *layer, const adapter_t *adapter, const block_t *block,
                         uint16_t *u, const uint16_t *x, ptrdiff_t x_stride, ptrdiff_t rank,
                         float scale) {
    const uint16_t *row[BLOCK_ROWS];
    for (int m = 0; m < BLOCK_ROWS; m++) row[m] = x + block->row[m] * x_stride;
    ptrdiff_t in = layer->in, u_stride = layer->max_ranks, count = block->count;
    ptrdiff_t end = adapter->ranks - rank < LANES ? adapter->ranks : rank + LANES;
    for (ptrdiff_t width; rank < end; rank += width) {
        const uint32_t *a = adapter->a + rank * (padded(in) / 2);
        width = group_width(end - rank);
        switch (width) {
            case 16: shrink_group(16, count, u + rank, u_stride, row, a, in, scale); break;
            case 8: shrink_group(8, count, u + rank, u_stride, row, a, in, scale); break;
            case 4: shrink_group(4, count, u + rank, u_stride, row, a, in, scale); break;
            default: shrink_group(2, count, u + rank, u_stride, row, a, in, scale);
        }
    }
}

static void expand_block(const layer_t *layer, const adapter_t *adapter, const block_t *block,
                         const uint16_t *u, uint16_t *y, ptrdiff_t y_stride, ptrdiff_t chunk) {
    const uint32_t *b = adapter->b;
    for (int64_t p = 0; p < layer->projections; p++) {
        ptrdiff_t width = layer->width[p], chunks = chunks_of(width);
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
#define ROWS(n) case n: expand(n, row, u, u_stride, b, padded(width), rank, count); return
                ROWS(1); ROWS(2); ROWS(3); ROWS(4); ROWS(5); ROWS(6); ROWS(7); ROWS(8);
            }
        }
        chunk -= chunks;
        y += width;
        u += rank;
        b += rank / 2 * padded(width);
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
