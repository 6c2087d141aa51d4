/* LoRA on rows of a batch, each with its own adapter: y[row] += scale * B (A x[row]).
 *
 * For batches in which few rows share an adapter (decode), where calling two matrix products for
 * each adapter costs more than the arithmetic. All adapters of a layer are one call; both phases
 * are split over OpenMP's threads. Written with the vector extensions of GCC and Clang, so that
 * one source serves AVX2, AVX-512 and NEON. Sums are float32; weights and activations bfloat16.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

enum { LANES = 16, BLOCK_ROWS = 4, RANKS = 4 };
enum { COLUMN_CHUNK = 512, PARALLEL_WORK = 250000 };

typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef uint32_t vbits __attribute__((vector_size(4 * LANES)));
typedef uint16_t vbf16 __attribute__((vector_size(2 * LANES)));

/* Up to four rows of one slot; `row` is padded with the last of them. */
typedef struct { int32_t slot, count, row[BLOCK_ROWS]; } block_t;

/* One adapter in one layer. A: (ranks, padded), the projections' rows one after another, padded
 * with zeros to whole RANKS and LANES. B: for each projection (rank, width), one after another. */
typedef struct { const uint16_t *a, *b; int64_t size, ranks; const int64_t *rank; } adapter_t;

/* A layer: features in, and out for each projection; max_ranks: the largest padded `ranks`. */
typedef struct {
    int64_t in, padded, max_ranks, projections;
    const int64_t *width;
    const adapter_t *const *adapter; /* by slot; null where none is packed */
} layer_t;

static inline vfloat load(const uint16_t *from, ptrdiff_t count) {
    vbf16 half = {0};
    if (count >= LANES) memcpy(&half, from, sizeof half);
    else memcpy(&half, from, 2 * count);
    return (vfloat)(__builtin_convertvector(half, vbits) << 16);
}

static inline void store(uint16_t *to, vfloat value, ptrdiff_t count) {
#ifdef __AVX512BF16__
    vbf16 half = (vbf16)_mm512_cvtneps_pbh((__m512)value);
#else
    vbits bits = (vbits)value;
    vbits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest, ties to even */
    vbits is_nan = (vbits)(value != value);
    vbf16 half = __builtin_convertvector((rounded & ~is_nan) | (0x7fc0 & is_nan), vbf16);
#endif
    if (count >= LANES) memcpy(to, &half, sizeof half);
    else memcpy(to, &half, 2 * count);
}

static inline float sum(vfloat value) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += value[lane];
    return total;
}

/* Specialised for the number of rows where it is called with a constant. */
#define INLINE static inline __attribute__((always_inline))

/* u[r][m] = scale * A[r] . x[m] for RANKS rows of A and some rows of float32. */
INLINE void shrink(int rows, float *u, const float *x, const uint16_t *a, ptrdiff_t padded,
                   float scale) {
    vfloat acc[RANKS][BLOCK_ROWS] = {0};
    for (ptrdiff_t i = 0; i < padded; i += LANES) {
        vfloat in[BLOCK_ROWS];
        for (int m = 0; m < rows; m++) memcpy(&in[m], x + m * padded + i, sizeof(vfloat));
        for (int r = 0; r < RANKS; r++) {
            vfloat weight = load(a + r * padded + i, LANES);
            for (int m = 0; m < rows; m++) acc[r][m] += weight * in[m];
        }
    }
    for (int r = 0; r < RANKS; r++)
        for (int m = 0; m < rows; m++) u[r * BLOCK_ROWS + m] = scale * sum(acc[r][m]);
}

/* y[m][:first + second] += sum over ranks of u[rank][m] * b[rank]; y[m] starts at y + row[m]. */
INLINE void expand_columns(int rows, uint16_t *y, const ptrdiff_t *row, const float *u,
                           const uint16_t *b, ptrdiff_t width, int64_t rank, ptrdiff_t first,
                           ptrdiff_t second) {
    vfloat acc[BLOCK_ROWS][2];
    for (int m = 0; m < rows; m++) {
        acc[m][0] = load(y + row[m], first);
        acc[m][1] = load(y + row[m] + LANES, second);
    }
    for (int64_t k = 0; k < rank; k++, b += width, u += BLOCK_ROWS) {
        vfloat low = load(b, first), high = load(b + LANES, second);
        for (int m = 0; m < rows; m++) {
            acc[m][0] += u[m] * low;
            acc[m][1] += u[m] * high;
        }
    }
    for (int m = 0; m < rows; m++) {
        store(y + row[m], acc[m][0], first);
        store(y + row[m] + LANES, acc[m][1], second);
    }
}

INLINE void expand(int rows, uint16_t *y, const ptrdiff_t *row, const float *u, const uint16_t *b,
                   ptrdiff_t width, int64_t rank, ptrdiff_t count) {
    ptrdiff_t j = 0;
    for (; j + 2 * LANES <= count; j += 2 * LANES)
        expand_columns(rows, y + j, row, u, b + j, width, rank, LANES, LANES);
    if (j < count) {
        ptrdiff_t left = count - j, second = left > LANES ? left - LANES : 0;
        expand_columns(rows, y + j, row, u, b + j, width, rank, left, second);
    }
}

static ptrdiff_t chunks_of(ptrdiff_t width) { return (width + COLUMN_CHUNK - 1) / COLUMN_CHUNK; }

static void widen(float *to, const uint16_t *from, ptrdiff_t size, ptrdiff_t padded) {
    for (ptrdiff_t i = 0; i < padded; i += LANES) {
        vfloat value = load(from + i, size - i);
        memcpy(to + i, &value, sizeof value);
    }
}

static void shrink_ranks(const adapter_t *adapter, const block_t *block, float *u, const float *x,
                         ptrdiff_t r, ptrdiff_t padded, float scale) {
    const uint16_t *a = adapter->a + r * padded;
    u += r * BLOCK_ROWS;
    if (block->count == 1) shrink(1, u, x, a, padded, scale);
    else if (block->count == 2) shrink(2, u, x, a, padded, scale);
    else shrink(BLOCK_ROWS, u, x, a, padded, scale);
}

static void expand_chunk(const layer_t *layer, const adapter_t *adapter, const block_t *block,
                         const float *u, uint16_t *y, ptrdiff_t y_stride, ptrdiff_t chunk) {
    const uint16_t *b = adapter->b;
    ptrdiff_t row[BLOCK_ROWS];
    for (int m = 0; m < BLOCK_ROWS; m++) row[m] = block->row[m] * y_stride;
    for (int64_t p = 0; p < layer->projections; p++) {
        ptrdiff_t width = layer->width[p], chunks = chunks_of(width);
        int64_t rank = adapter->rank[p];
        if (chunk < chunks) {
            ptrdiff_t begin = chunk * COLUMN_CHUNK, count = width - begin;
            if (count > COLUMN_CHUNK) count = COLUMN_CHUNK;
            if (!rank) return;
            y += begin;
            b += begin;
            if (block->count == 1) expand(1, y, row, u, b, width, rank, count);
            else if (block->count == 2) expand(2, y, row, u, b, width, rank, count);
            else if (block->count == 3) expand(3, y, row, u, b, width, rank, count);
            else expand(BLOCK_ROWS, y, row, u, b, width, rank, count);
            return;
        }
        chunk -= chunks;
        y += width;
        u += rank * BLOCK_ROWS;
        b += rank * width;
    }
}

/* Both phases for all blocks; called by each thread of a team, or by one thread alone. */
static void add_blocks(const layer_t *layer, const uint16_t *x, int64_t x_stride, uint16_t *y,
                       int64_t y_stride, const block_t *block, int64_t blocks, float scale,
                       float *scratch) {
    ptrdiff_t padded = layer->padded, u_stride = BLOCK_ROWS * layer->max_ranks, chunks = 0;
    for (int64_t p = 0; p < layer->projections; p++) chunks += chunks_of(layer->width[p]);
    float *wide = scratch, *u = scratch + blocks * BLOCK_ROWS * padded;

#pragma omp for
    for (int64_t i = 0; i < blocks; i++)
        for (int m = 0; m < block[i].count; m++)
            widen(wide + (i * BLOCK_ROWS + m) * padded, x + block[i].row[m] * x_stride, layer->in,
                  padded);
#pragma omp for collapse(2)
    for (int64_t i = 0; i < blocks; i++)
        for (ptrdiff_t r = 0; r < layer->max_ranks; r += RANKS) {
            const adapter_t *adapter = layer->adapter[block[i].slot];
            if (r < adapter->ranks)
                shrink_ranks(adapter, &block[i], u + i * u_stride,
                             wide + i * BLOCK_ROWS * padded, r, padded, scale);
        }
#pragma omp for collapse(2)
    for (int64_t i = 0; i < blocks; i++)
        for (ptrdiff_t c = 0; c < chunks; c++)
            expand_chunk(layer, layer->adapter[block[i].slot], &block[i], u + i * u_stride, y,
                         y_stride, c);
}

/* Returns 0, or the slot + 1 of a block whose adapter isn't packed: nothing is computed then.
 * `scratch`: blocks * BLOCK_ROWS * (padded + max_ranks) floats. */
int64_t lora_rows(const layer_t *layer, const uint16_t *x, int64_t x_stride, uint16_t *y,
                  int64_t y_stride, const block_t *block, int64_t blocks, float scale,
                  float *scratch) {
    int64_t work = 0;
    for (int64_t i = 0; i < blocks; i++) {
        const adapter_t *adapter = layer->adapter[block[i].slot];
        if (!adapter) return block[i].slot + 1;
        work += adapter->size;
    }
    /* Not `parallel if`: a team of one makes libgomp build the next region's team anew. */
    if (work <= PARALLEL_WORK) {
        add_blocks(layer, x, x_stride, y, y_stride, block, blocks, scale, scratch);
    } else {
#pragma omp parallel
        add_blocks(layer, x, x_stride, y, y_stride, block, blocks, scale, scratch);
    }
    return 0;
}
