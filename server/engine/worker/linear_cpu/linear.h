/* Products of the rows of a batch with a weight, in bfloat16 with sums in float32.
 *
 * For each LANES features out, `weights` has (pairs of features in, LANES, 2), so that a few rows
 * read the weights as one stream. An output is the same whatever other rows are in the batch: its
 * products are always summed in the same order.
 */
#pragma once
#include "../vectors.h"

/* As many rows and columns of LANES features as there are registers for their sums. */
#ifdef __AVX512F__
enum { MOST_ROWS = 12, COLUMNS = 2, FEW_ROWS = 4, COLUMNS_OF_FEW = 4 };
#else
enum { MOST_ROWS = 4, COLUMNS = 1, FEW_ROWS = 1, COLUMNS_OF_FEW = 2 };
#endif
enum { COPY_NUMBERS = 8192 };

typedef struct {
    const uint32_t *weights;
    const float *bias; /* or null */
    int64_t in, out;   /* `in` is even, and `out` a multiple of LANES */
} linear_t;

/* How a product reads the rows of x: as they are, or, without an instruction for bfloat16,
 * converted once to float32. */
#ifdef __AVX512BF16__
typedef uint16_t number;
#else
typedef float number;
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

/* Computes up to MOST_ROWS rows of some columns, each of LANES features out. Callers give
 * constants for `rows`, of which `count` are stored, and `columns`. */
INLINE void tile(int rows, int columns, const linear_t *layer, const number *const *x,
                 uint16_t *const *y, int count, ptrdiff_t column) {
    vfloat sum[MOST_ROWS][COLUMNS_OF_FEW] = {0};
    ptrdiff_t stride = layer->in / 2 * LANES;
    const uint32_t *weights = layer->weights + column * stride;
    for (ptrdiff_t p = 0; p < layer->in / 2; p++, weights += LANES)
        add_pair(rows, columns, sum, x, p, weights, stride);
    for (int c = 0; c < columns; c++) {
        ptrdiff_t first = (column + c) * LANES;
        vfloat bias = {0};
        if (layer->bias) memcpy(&bias, layer->bias + first, sizeof bias);
        for (int m = 0; m < count; m++) store(y[m] + first, sum[m][c] + bias, LANES);
    }
}

INLINE void tile_of(int columns, const linear_t *layer, const number *const *x, uint16_t *const *y,
                    int count, ptrdiff_t column) {
#define ROWS(n) if (n <= MOST_ROWS && count <= n) { tile(n, columns, layer, x, y, count, column); return; }
    ROWS(1) ROWS(2) ROWS(3) ROWS(4)
    if (columns != COLUMNS_OF_FEW) { ROWS(6) ROWS(8) ROWS(10) ROWS(12) } /* few rows are fewer */
#undef ROWS
}

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
        if (columns == COLUMNS_OF_FEW) tile_of(COLUMNS_OF_FEW, layer, x_row, y_row, count, column);
        else if (columns == COLUMNS) tile_of(COLUMNS, layer, x_row, y_row, count, column);
        else tile_of(1, layer, x_row, y_row, count, column);
    }
}

/* Each thread of a team calls it. Features out are divided among the threads. */
static void compute(const linear_t *layer, const number *x, ptrdiff_t x_stride, uint16_t *y,
                    ptrdiff_t y_stride, ptrdiff_t rows) {
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
