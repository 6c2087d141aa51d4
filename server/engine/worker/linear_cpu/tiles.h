/* Products in bfloat16 by AMX, where one instruction multiplies tiles: TILE_ROWS rows with TILE_IN
 * features in each, by as many features in with LANES features out each.
 *
 * A weight's tile is 16 pairs of features in as `linear.h` describes them, so nothing is packed
 * anew. A batch of few rows takes the same instructions as one of many, so that an output stays
 * the same whatever other rows are in the batch.
 */
#pragma once
#include "../vectors.h"
#include <immintrin.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { TILE_ROWS = 16, TILE_IN = 32, TILE_NUMBERS = TILE_IN / 2 * LANES };
enum { SUMS = 4, INPUTS = 2, WEIGHTS = 2 }; /* registers for tiles: 0 to 3, 4 and 5, 6 and 7 */
enum { TILES_AHEAD = 4 };
enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };

/* Linux lets a process use AMX when it has asked for it. */
static int may_use_tiles(void) {
    static _Atomic int answer; /* 0: not asked yet */
    if (!answer) answer = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) ? 1 : 2;
    return answer == 2;
}

/* Gives the registers of sums and inputs `rows` rows. Others on this thread set them for
 * themselves, as vLLM's and oneDNN's products do. */
static void set_tiles(int rows) {
    struct {
        uint8_t palette, first_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int tile = 0; tile < SUMS + INPUTS + WEIGHTS; tile++) {
        shape.bytes[tile] = 4 * LANES;
        shape.rows[tile] = tile < SUMS + INPUTS ? rows : TILE_IN / 2;
    }
    _tile_loadconfig(&shape);
}

/* What a product reads and writes. The numbers of rows are `x_stride` and `y_stride` apart, and the
 * weights of LANES features out `stride`. */
typedef struct {
    const uint16_t *x;
    const uint32_t *weights;
    const float *bias; /* or null */
    uint16_t *y;
    ptrdiff_t in, x_stride, y_stride, stride;
} tiled_t;

/* Stores the sums of `rows` rows and LANES features out. */
INLINE void store_sums(const tiled_t *it, const float (*sums)[LANES], int rows, ptrdiff_t row,
                       ptrdiff_t column) {
    vfloat bias = {0}, sum;
    if (it->bias) memcpy(&bias, it->bias + column * LANES, sizeof bias);
    uint16_t *y = it->y + row * it->y_stride + column * LANES;
    for (int m = 0; m < rows; m++, y += it->y_stride) {
        memcpy(&sum, sums[m], sizeof sum);
        store(y, sum + bias, LANES);
    }
}

#define STORE(tile, at, c) \
    _tile_stored(tile, sums, sizeof *sums); \
    store_sums(it, sums, rows, at, column + (c))

/* Computes up to TILE_ROWS rows and up to 4 columns of LANES features out. Callers give a constant
 * for `columns`. */
INLINE void few_tiles(int columns, const tiled_t *it, int rows, ptrdiff_t row, ptrdiff_t column) {
    _Alignas(64) float sums[TILE_ROWS][LANES];
    const uint16_t *x = it->x + row * it->x_stride;
    const uint32_t *weights = it->weights + column * it->stride;
    _tile_zero(0);
    if (columns > 1) _tile_zero(1);
    if (columns > 2) { _tile_zero(2); _tile_zero(3); }
#define ADD(c, tile) \
    if (columns > c) { \
        _tile_loadd(tile, weights + c * it->stride, 4 * LANES); \
        _tile_dpbf16ps(c, 4, tile); \
    }
    for (ptrdiff_t k = 0; k < it->in; k += TILE_IN, weights += TILE_NUMBERS) {
        _tile_loadd(4, x + k, 2 * it->x_stride);
        ADD(0, 6) ADD(1, 7) ADD(2, 6) ADD(3, 7)
    }
#undef ADD
    STORE(0, row, 0);
    if (columns > 1) { STORE(1, row, 1); }
    if (columns > 2) { STORE(2, row, 2); STORE(3, row, 3); }
}

/* The processor itself foresees too little of two streams of weights. */
INLINE void fetch_tile(const uint32_t *weights) {
    for (int pair = 0; pair < TILE_IN / 2; pair++)
        __builtin_prefetch(weights + TILES_AHEAD * TILE_NUMBERS + pair * LANES);
}

/* Computes twice TILE_ROWS rows and 2 columns. */
static void four_tiles(const tiled_t *it, ptrdiff_t row, ptrdiff_t next, ptrdiff_t column) {
    enum { rows = TILE_ROWS };
    _Alignas(64) float sums[TILE_ROWS][LANES];
    const uint16_t *x = it->x + row * it->x_stride, *other = it->x + next * it->x_stride;
    const uint32_t *weights = it->weights + column * it->stride;
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (ptrdiff_t k = 0; k < it->in; k += TILE_IN, weights += TILE_NUMBERS) {
        _tile_loadd(4, x + k, 2 * it->x_stride);
        fetch_tile(weights);
        fetch_tile(weights + it->stride);
        _tile_loadd(6, weights, 4 * LANES);
        _tile_loadd(7, weights + it->stride, 4 * LANES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, other + k, 2 * it->x_stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    STORE(0, row, 0); STORE(1, row, 1); STORE(2, next, 0); STORE(3, next, 1);
}
#undef STORE

/* Computes all rows of some columns. */
static void tiled_columns(const tiled_t *it, ptrdiff_t rows, ptrdiff_t column, int columns) {
    int height = rows < TILE_ROWS ? rows : TILE_ROWS;
    ptrdiff_t last = rows - height; /* a tile that would end behind the rows begins here */
    for (ptrdiff_t row = 0; row < rows; row += TILE_ROWS) {
        ptrdiff_t at = row < last ? row : last, next = row + TILE_ROWS;
        if (columns == 4) few_tiles(4, it, height, at, column);
        else if (columns == 1) few_tiles(1, it, height, at, column);
        else if (next >= rows) few_tiles(2, it, height, at, column);
        else four_tiles(it, at, next < last ? next : last, column), row = next;
    }
}

/* Each thread of a team calls it. Features out are divided among the threads. */
static void compute_tiles(const tiled_t *it, ptrdiff_t out, ptrdiff_t rows) {
    if (!rows) return;
    ptrdiff_t columns = out / LANES;
    int width = rows <= TILE_ROWS ? 4 : 2;
    set_tiles(rows < TILE_ROWS ? rows : TILE_ROWS);
#pragma omp for schedule(static) nowait
    for (ptrdiff_t first = 0; first < columns; first += width) {
        ptrdiff_t left = columns - first;
        if (left >= width) tiled_columns(it, rows, first, width);
        else
            for (ptrdiff_t c = 0; c < left; c++) tiled_columns(it, rows, first + c, 1);
    }
    _tile_release();
}
