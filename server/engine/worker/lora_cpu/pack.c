/* Converts an adapter's file to the layout of rows.c. One call does all of it in one pass, so that
 * the calling thread holds Python's lock for none of this work. */
#include <stdint.h>
#include <string.h>

enum { LANES = 16, CHUNK = 512 };
enum { FLOAT32, FLOAT16, BFLOAT16 };

/* One matrix of a file, stored row by row. For A (ranks, features in), `first` is the place of its
 * first rank among the layer's ranks, and `padded` is the number of these. For B (features out,
 * ranks), `padded` is the padded number of features out. */
typedef struct {
    const char *from;
    uint16_t *to;
    int32_t type, is_b;
    int64_t rows, columns, first, padded;
    float scale;
} part_t;

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Without a branch, so that the compiler takes many numbers at a time. */
static uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest, ties to even */
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
}

static float from_float16(uint16_t half) {
    uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ff;
    if (!exponent) return from_bits(sign | 0x3f800000) * mantissa * 0x1p-24f;
    return from_bits(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13);
}

static void read_numbers(const char *from, int32_t type, uint16_t *number, int64_t count) {
    if (type == FLOAT32)
        for (int64_t i = 0; i < count; i++) {
            float value;
            memcpy(&value, from + 4 * i, sizeof value);
            number[i] = to_bfloat16(value);
        }
    else memcpy(number, from, 2 * count);
    if (type == FLOAT16)
        for (int64_t i = 0; i < count; i++) number[i] = to_bfloat16(from_float16(number[i]));
}

/* Returns 1 if all numbers are finite, else 0. */
static int scale_numbers(uint16_t *number, int64_t count, float scale) {
    uint16_t all_finite = 1;
    /* Numbers are rounded before and after scaling, as in vLLM. */
    if (scale != 1)
        for (int64_t i = 0; i < count; i++)
            number[i] = to_bfloat16(from_bits((uint32_t)number[i] << 16) * scale);
    for (int64_t i = 0; i < count; i++) all_finite &= (number[i] & 0x7f80) != 0x7f80;
    return all_finite;
}

/* Writes pairs of a rank's features, from the first pair of a vector on. In each vector the group's
 * ranks have `at_once` pairs each. Callers give a constant for it. */
static inline __attribute__((always_inline)) void write_vectors(
    uint32_t *to, int64_t at_once, const uint16_t *number, int64_t count) {
    for (; count >= 2 * at_once; count -= 2 * at_once, number += 2 * at_once, to += LANES)
        memcpy(to, number, 4 * at_once);
    memcpy(to, number, 2 * count);
}

/* Writes some features of a rank of A, from a vector's first one on. */
static void write_a(const part_t *part, int64_t rank, int64_t feature, const uint16_t *number,
                    int64_t count) {
    int64_t start = rank / LANES * LANES, width = LANES;
    int64_t features = (part->columns + LANES - 1) / LANES * LANES;
    for (;; width /= 2) { /* finds the rank's group, see rows.h */
        if (start + width > part->padded) continue;
        if (rank < start + width) break;
        start += width;
    }
    uint32_t *to = (uint32_t *)part->to + (start * features + feature * width) / 2;
    to += (rank - start) * (LANES / width);
    switch (width) {
        case 16: write_vectors(to, 1, number, count); break;
        case 8: write_vectors(to, 2, number, count); break;
        case 4: write_vectors(to, 4, number, count); break;
        default: write_vectors(to, 8, number, count);
    }
}

/* Writes some ranks of some rows of B, from an even rank on. */
static void write_b(const part_t *part, int64_t row, int64_t rows, int64_t rank,
                    const uint16_t *number, int64_t count) {
    for (int64_t i = 0; i < count; i += 2)
        for (int64_t r = 0; r < rows; r++)
            memcpy(part->to + 2 * ((rank + i) / 2 * part->padded + row + r), number + r * count + i,
                   i + 1 < count ? 4 : 2);
}

static int pack_part(const part_t *part) {
    int all_finite = 1;
    int64_t bytes = part->type == FLOAT32 ? 4 : 2, columns = part->columns;
    int64_t at_once = columns && columns < CHUNK ? CHUNK / columns : 1; /* rows */
    for (int64_t row = 0; row < part->rows; row += at_once)
        for (int64_t column = 0; column < columns; column += CHUNK) {
            uint16_t number[CHUNK];
            int64_t count = columns - column < CHUNK ? columns - column : CHUNK;
            int64_t rows = part->rows - row < at_once ? part->rows - row : at_once;
            read_numbers(part->from + (row * columns + column) * bytes, part->type, number,
                         rows * count);
            all_finite &= scale_numbers(number, rows * count, part->scale);
            if (part->is_b) write_b(part, row, rows, column, number, count);
            else
                for (int64_t r = 0; r < rows; r++)
                    write_a(part, part->first + row + r, column, number + r * count, count);
        }
    return all_finite;
}

/* Returns 0, or the index + 1 of a part with numbers that aren't finite in bfloat16. The memory at
 * `to` must be zero. */
int64_t pack_parts(const part_t *part, int64_t parts) {
    for (int64_t i = 0; i < parts; i++)
        if (!pack_part(&part[i])) return i + 1;
    return 0;
}
