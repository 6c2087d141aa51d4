/* Products of the rows of a batch, in bfloat16, with a weight in bfloat16 or in 4 bits. Sums are in
 * float32.
 *
 * For each LANES features out, weights in bfloat16 are (pairs of features in, LANES, 2), so that a
 * few rows read the weights as one stream. Those in 4 bits are described in `four_bit.h`. An output
 * is the same whatever other rows are in the batch: its products are always summed in the same
 * order.
 */
#pragma once
#include "four_bit.h"
#include "layer.h"
#ifdef __AMX_BF16__
#include "four_bit_tiles.h"
#endif
enum { COPY_NUMBERS = 8192 };

#ifdef __AMX_BF16__
/* Computes a layer by AMX, or returns 0 if that can't be done. Each thread of a team calls it. */
static int compute_by_tiles(const linear_t *layer, const number *x, ptrdiff_t x_stride,
                            uint16_t *y, ptrdiff_t y_stride, ptrdiff_t rows) {
    if (layer->in % TILE_IN || (layer->scales && layer->group % TILE_IN) || !may_use_tiles())
        return 0;
    ptrdiff_t numbers = layer->scales ? WORD_WEIGHTS : 2;
    tiled_t it = {x, layer->weights, layer->bias, y,
                  layer->in, x_stride, y_stride, layer->in / numbers * LANES};
    if (layer->scales) compute_four_bit_tiles(&it, layer, rows);
    else compute_tiles(&it, layer->out, rows);
    return 1;
}
#endif

/* Adds the products of pair `p` of each row with that of each column, which are `stride` apart. */
INLINE void add_pair(int rows, int columns, vfloat sum[][COLUMNS_OF_FEW], const number *const *x,
                     ptrdiff_t p, const uint32_t *weights, ptrdiff_t stride) {
#ifdef __AVX512BF16__
    vpair pair[COLUMNS_OF_FEW];
    for (int c = 0; c < columns; c++) pair[c] = load_pairs(weights + c * stride);
    for (int m = 0; m < rows; m++) {
        uint32_t both;
        memcpy(&both, x[m] + 2 * p, sizeof both);
        vpair factor = (vpair){0} + both;
        for (int c = 0; c < columns; c++)
            sum[m][c] = (vfloat)_mm512_dpbf16_ps((__m512)sum[m][c], (__m512bh)factor,
                                                 (__m512bh)pair[c]);
    }
#else
    vfloat first[COLUMNS_OF_FEW], second[COLUMNS_OF_FEW];
    for (int c = 0; c < columns; c++) {
        vpair pair = load_pairs(weights + c * stride);
        first[c] = first_of(pair);
        second[c] = second_of(pair);
    }
    for (int m = 0; m < rows; m++)
        for (int c = 0; c < columns; c++) {
            sum[m][c] += x[m][2 * p] * first[c];
            sum[m][c] += x[m][2 * p + 1] * second[c];
        }
#endif
}

/* Writes the sums of `count` rows of some columns, with the bias. */
INLINE void finish(int columns, const linear_t *layer, vfloat sum[][COLUMNS_OF_FEW],
                   uint16_t *const *y, int count, ptrdiff_t column) {
    for (int c = 0; c < columns; c++) {
        ptrdiff_t first = (column + c) * LANES;
        vfloat bias = {0};
        if (layer->bias) memcpy(&bias, layer->bias + first, sizeof bias);
        for (int m = 0; m < count; m++) store(y[m] + first, sum[m][c] + bias, LANES);
    }
}

/* Computes up to MOST_ROWS rows of some columns, each of LANES features out. Callers give
 * constants for `rows`, of which `count` are stored, and `columns`. */
INLINE void tile(int rows, int columns, const linear_t *layer, const number *const *x,
                 uint16_t *const *y, int count, ptrdiff_t column) {
    vfloat sum[MOST_ROWS][COLUMNS_OF_FEW] = {0};
    ptrdiff_t stride = layer->in / 2 * LANES;
    const uint32_t *weights = layer->weights + column * stride;
    for (ptrdiff_t p = 0; p < layer->in / 2; p++, weights += LANES)
        add_pair(rows, columns, sum, x, p, weights, stride);
    finish(columns, layer, sum, y, count, column);
}

/* As `tile`, for weights in 4 bits. */
INLINE void four_bit_tile(int rows, int columns, int has_zeros, const linear_t *layer,
                          const number *const *x, uint16_t *const *y, int count,
                          ptrdiff_t column) {
    vfloat sum[MOST_ROWS][COLUMNS_OF_FEW] = {0};
    ptrdiff_t stride = layer->in / WORD_WEIGHTS * LANES, groups = layer->in / layer->group;
    const uint32_t *weights = layer->weights + column * stride;
    const uint16_t *scales = layer->scales + column * groups * LANES;
    const int8_t *zeros = has_zeros ? layer->zeros + column * groups * LANES : 0;
    for (ptrdiff_t g = 0; g < groups; g++)
        add_group(rows, columns, has_zeros, sum, x, g, layer->group, weights, stride, scales,
                  zeros, groups);
    finish(columns, layer, sum, y, count, column);
}

/* The smallest tile that holds `count` rows. Few rows are at most 4. */
#define ROWS(n) if (n <= MOST_ROWS && count <= n) { TILE(n); return; }
#define EACH_NUMBER_OF_ROWS \
    ROWS(1) ROWS(2) ROWS(3) ROWS(4) \
    if (columns != COLUMNS_OF_FEW) { ROWS(6) ROWS(8) ROWS(10) ROWS(12) }

INLINE void tile_of(int columns, const linear_t *layer, const number *const *x, uint16_t *const *y,
                    int count, ptrdiff_t column) {
#define TILE(n) tile(n, columns, layer, x, y, count, column)
    EACH_NUMBER_OF_ROWS
#undef TILE
}

INLINE void four_bit_tile_of(int columns, int has_zeros, const linear_t *layer,
                             const number *const *x, uint16_t *const *y, int count,
                             ptrdiff_t column) {
#define TILE(n) four_bit_tile(n, columns, has_zeros, layer, x, y, count, column)
    EACH_NUMBER_OF_ROWS
#undef TILE
}
#undef EACH_NUMBER_OF_ROWS
#undef ROWS

/* Each form is a function of its own, in which the compiler finds registers for all sums. */
#define FORM(name, call) \
    static void name(const linear_t *layer, const number *const *x, uint16_t *const *y, int count, \
                     ptrdiff_t column, int width) { \
        if (width == COLUMNS_OF_FEW) call(COLUMNS_OF_FEW); \
        else if (width == COLUMNS) call(COLUMNS); \
        else call(1); \
    }
#define PLAIN(columns) tile_of(columns, layer, x, y, count, column)
#define SYMMETRIC(columns) four_bit_tile_of(columns, 0, layer, x, y, count, column)
#define WITH_ZEROS(columns) four_bit_tile_of(columns, 1, layer, x, y, count, column)
FORM(plain, PLAIN)
FORM(symmetric, SYMMETRIC)
FORM(with_zeros, WITH_ZEROS)
#undef PLAIN
#undef SYMMETRIC
#undef WITH_ZEROS
#undef FORM

static void compute_columns(const linear_t *layer, const number *x, ptrdiff_t x_stride, uint16_t *y,
                            ptrdiff_t y_stride, ptrdiff_t rows, ptrdiff_t column, int columns) {
    /* Tiles of about the same height, instead of full ones and a rest. */
    ptrdiff_t tiles = (rows + MOST_ROWS - 1) / MOST_ROWS;
    for (ptrdiff_t t = 0; t < tiles; t++) {
        ptrdiff_t begin = rows * t / tiles, count = rows * (t + 1) / tiles - begin;
        const number *x_row[MOST_ROWS];
        uint16_t *y_row[MOST_ROWS];
        for (ptrdiff_t m = 0; m < MOST_ROWS; m++) {
            ptrdiff_t row = begin + (m < count ? m : count - 1);
            x_row[m] = x + row * x_stride;
            y_row[m] = y + row * y_stride;
        }
        if (!layer->scales) plain(layer, x_row, y_row, count, column, columns);
        else if (!layer->zeros) symmetric(layer, x_row, y_row, count, column, columns);
        else with_zeros(layer, x_row, y_row, count, column, columns);
    }
}

/* Each thread of a team calls it. Features out are divided among the threads. */
static void compute(const linear_t *layer, const number *x, ptrdiff_t x_stride, uint16_t *y,
                    ptrdiff_t y_stride, ptrdiff_t rows) {
#ifdef __AMX_BF16__
    if (compute_by_tiles(layer, x, x_stride, y, y_stride, rows)) return;
#endif
    ptrdiff_t columns = layer->out / LANES, width = rows <= FEW_ROWS ? COLUMNS_OF_FEW : COLUMNS;
#pragma omp for schedule(static) nowait
    for (ptrdiff_t first = 0; first < columns; first += width) {
        ptrdiff_t left = columns - first;
        if (left >= width) compute_columns(layer, x, x_stride, y, y_stride, rows, first, width);
        else
            for (ptrdiff_t c = 0; c < left; c++)
                compute_columns(layer, x, x_stride, y, y_stride, rows, first + c, 1);
    }
}
