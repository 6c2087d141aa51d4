/* Products with weights in 4 bits by AMX: each weight's tile is unpacked where the instruction
 * finds it in the cache. As in `four_bit.h`, the products of a group are summed before they are
 * scaled. */
#pragma once
#include "four_bit.h"
#include "layer.h"
#include "tiles.h"

/* So many tiles of rows share an unpacked tile of weights. */
enum { SHARING = SUMS, COLUMNS_OF_ONE = 4 };

/* Writes TILE_IN features in of LANES features out as a tile of weights. */
INLINE void unpack_tile(int has_zeros, uint32_t *tile, const uint32_t *words, vpair offset) {
    for (int w = 0; w < TILE_IN / WORD_WEIGHTS; w++) {
        vpair word = load_pairs(words + w * LANES);
        for (int i = 0; i < WORD_WEIGHTS / 2; i++, tile += LANES) {
            vpair pair = pair_of(has_zeros, word, i, offset);
            memcpy(tile, &pair, sizeof pair);
        }
    }
}

/* Adds the scaled products of a group to the sums of one tile of rows. */
INLINE void add_scaled(float (*sums)[LANES], const float (*part)[LANES], int rows, vfloat scale) {
    for (int m = 0; m < rows; m++) {
        vfloat sum, product;
        memcpy(&sum, sums[m], sizeof sum);
        memcpy(&product, part[m], sizeof product);
        sum += product * scale;
        memcpy(sums[m], &sum, sizeof sum);
    }
}

/* Writes the first and the second numbers of TILE_IN / 2 pairs of x. */
INLINE void part_pairs(float *firsts, float *seconds, const uint16_t *x) {
    vpair pairs;
    memcpy(&pairs, x, sizeof pairs);
    vfloat first = first_of(pairs), second = second_of(pairs);
    memcpy(firsts, &first, sizeof first);
    memcpy(seconds, &second, sizeof second);
}

/* Adds the products of TILE_IN features in of one row, as the instruction for tiles does: the first
 * and the second numbers of pairs are summed apart, and then both. */
INLINE void add_step(int columns, int has_zeros, vfloat *part, const uint16_t *x,
                     const uint32_t *words, ptrdiff_t stride, const vpair *offset) {
    vfloat first[COLUMNS_OF_ONE] = {0}, second[COLUMNS_OF_ONE] = {0};
    float firsts[TILE_IN / 2], seconds[TILE_IN / 2];
    part_pairs(firsts, seconds, x);
    for (int w = 0; w < TILE_IN / WORD_WEIGHTS; w++, words += LANES) {
        vpair word[COLUMNS_OF_ONE];
        for (int c = 0; c < columns; c++) word[c] = load_pairs(words + c * stride);
        for (int i = 0; i < WORD_WEIGHTS / 2; i++)
            for (int c = 0; c < columns; c++) {
                vpair pair = pair_of(has_zeros, word[c], i, offset[c]);
                first[c] += firsts[w * WORD_WEIGHTS / 2 + i] * first_of(pair);
                second[c] += seconds[w * WORD_WEIGHTS / 2 + i] * second_of(pair);
            }
    }
    for (int c = 0; c < columns; c++) part[c] += first[c] + second[c];
}

/* Computes one row of some columns without tiles: unpacking one takes longer than its products.
 * Callers give constants for `columns` and `has_zeros`. */
INLINE void one_row(int columns, int has_zeros, const tiled_t *it, const linear_t *layer,
                    ptrdiff_t column) {
    vfloat sum[COLUMNS_OF_ONE] = {0};
    ptrdiff_t groups = layer->in / layer->group;
    const uint32_t *words = layer->weights + column * it->stride;
    for (ptrdiff_t g = 0; g < groups; g++) {
        vfloat part[COLUMNS_OF_ONE] = {0};
        vpair offset[COLUMNS_OF_ONE] = {0};
        for (int c = 0; c < columns && has_zeros; c++)
            offset[c] = offset_of(layer->zeros + ((column + c) * groups + g) * LANES);
        for (ptrdiff_t k = g * layer->group; k < (g + 1) * layer->group; k += TILE_IN) {
            add_step(columns, has_zeros, part, it->x + k, words, it->stride, offset);
            words += TILE_IN / WORD_WEIGHTS * LANES;
        }
        for (int c = 0; c < columns; c++) {
            const uint16_t *scale = layer->scales + ((column + c) * groups + g) * LANES;
            sum[c] += part[c] * load(scale, LANES);
        }
    }
    for (int c = 0; c < columns; c++)
        store_sums(it, (const float (*)[LANES])&sum[c], 1, 0, column + c);
}

/* Computes up to SHARING tiles of `rows` rows, which begin at `row[t]`. Callers give constants for
 * `tiles` and `has_zeros`. */
INLINE void sharing_tiles(int tiles, int has_zeros, const tiled_t *it, const linear_t *layer,
                          int rows, const ptrdiff_t *row, ptrdiff_t column) {
    _Alignas(64) float sums[SHARING][TILE_ROWS][LANES] = {0}, part[SHARING][TILE_ROWS][LANES];
    _Alignas(64) uint32_t tile[2][TILE_NUMBERS];
    ptrdiff_t groups = layer->in / layer->group, step = 0;
    const uint32_t *words = layer->weights + column * it->stride;
    const uint16_t *x[SHARING];
    for (int t = 0; t < tiles; t++) x[t] = it->x + row[t] * it->x_stride;
    for (ptrdiff_t g = 0; g < groups; g++) {
        vpair offset = {0};
        if (has_zeros) offset = offset_of(layer->zeros + (column * groups + g) * LANES);
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
        for (ptrdiff_t k = g * layer->group; k < (g + 1) * layer->group; k += TILE_IN, step++) {
            unpack_tile(has_zeros, tile[step % 2], words, offset);
            words += TILE_IN / WORD_WEIGHTS * LANES;
            _tile_loadd(6, tile[step % 2], 4 * LANES);
#define ADD(t, input) \
            if (tiles > t) { \
                _tile_loadd(input, x[t] + k, 2 * it->x_stride); \
                _tile_dpbf16ps(t, input, 6); \
            }
            ADD(0, 4) ADD(1, 5) ADD(2, 4) ADD(3, 5)
#undef ADD
        }
        vfloat scale = load(layer->scales + (column * groups + g) * LANES, LANES);
#define ADD(t) \
        if (tiles > t) _tile_stored(t, part[t], sizeof *part[t]);
        ADD(0) ADD(1) ADD(2) ADD(3)
#undef ADD
        for (int t = 0; t < tiles; t++) add_scaled(sums[t], part[t], rows, scale);
    }
    for (int t = 0; t < tiles; t++) store_sums(it, sums[t], rows, row[t], column);
}

INLINE void four_bit_column(int has_zeros, const tiled_t *it, const linear_t *layer,
                            ptrdiff_t rows, ptrdiff_t column) {
    int height = rows < TILE_ROWS ? rows : TILE_ROWS;
    for (ptrdiff_t first = 0; first < rows; first += SHARING * TILE_ROWS) {
        ptrdiff_t row[SHARING], left = (rows - first + TILE_ROWS - 1) / TILE_ROWS;
        for (int t = 0; t < SHARING; t++) {
            ptrdiff_t at = first + t * TILE_ROWS;
            row[t] = at < rows - height ? at : rows - height;
        }
        if (left == 1) sharing_tiles(1, has_zeros, it, layer, height, row, column);
        else if (left == 2) sharing_tiles(2, has_zeros, it, layer, height, row, column);
        else sharing_tiles(SHARING, has_zeros, it, layer, height, row, column);
    }
}

/* Computes COLUMNS_OF_ONE columns from `column` on, as far as there are so many. */
INLINE void four_bit_columns(int has_zeros, const tiled_t *it, const linear_t *layer,
                             ptrdiff_t rows, ptrdiff_t column) {
    ptrdiff_t end = column + COLUMNS_OF_ONE, last = layer->out / LANES;
    if (rows == 1 && end <= last) {
        one_row(COLUMNS_OF_ONE, has_zeros, it, layer, column);
        return;
    }
    for (; column < end && column < last; column++) {
        if (rows == 1) one_row(1, has_zeros, it, layer, column);
        else four_bit_column(has_zeros, it, layer, rows, column);
    }
}

/* Each thread of a team calls it. Features out are divided among the threads. */
static void compute_four_bit_tiles(const tiled_t *it, const linear_t *layer, ptrdiff_t rows) {
    if (!rows) return;
    if (rows > 1) set_tiles(rows < TILE_ROWS ? rows : TILE_ROWS);
#pragma omp for schedule(static) nowait
    for (ptrdiff_t column = 0; column < layer->out / LANES; column += COLUMNS_OF_ONE) {
        if (layer->zeros) four_bit_columns(1, it, layer, rows, column);
        else four_bit_columns(0, it, layer, rows, column);
    }
    if (rows > 1) _tile_release();
}
