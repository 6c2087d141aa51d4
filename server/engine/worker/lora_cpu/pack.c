/* Converts an adapter's file to the layout of rows.c. One call does all of it in one pass, so that
 * the calling thread holds Python's lock for none of this work. */
#include <stdint.h>
#include <string.h>

enum { LANES = 16 };
enum { FLOAT32, FLOAT16, BFLOAT16 };

/* One matrix of a file, stored row by row. For A (ranks, features in), `first` is the place of its
 * first rank among the layer's ranks. For B (features out, ranks), `stride` is the padded number of
 * features out. */
typedef struct {
    const char *from;
    uint16_t *to;
    int32_t type, is_b;
    int64_t rows, columns, first, stride;
    float scale;
} part_t;

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest, ties to even */
}

static float from_float16(uint16_t half) {
    uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ff;
    if (!exponent) return from_bits(sign | 0x3f800000) * mantissa * 0x1p-24f;
    return from_bits(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13);
}

static uint16_t read_number(const char *from, int32_t type, int64_t index) {
    uint16_t half;
    if (type == FLOAT32) {
        float value;
        memcpy(&value, from + 4 * index, sizeof value);
        return to_bfloat16(value);
    }
    memcpy(&half, from + 2 * index, sizeof half);
    return type == FLOAT16 ? to_bfloat16(from_float16(half)) : half;
}

static int pack_part(const part_t *part) {
    uint16_t all_finite = 1;
    for (int64_t row = 0; row < part->rows; row++)
        for (int64_t column = 0; column < part->columns; column++) {
            uint16_t number = read_number(part->from, part->type, row * part->columns + column);
            /* Numbers are rounded before and after scaling, as in vLLM. */
            if (part->scale != 1)
                number = to_bfloat16(from_bits((uint32_t)number << 16) * part->scale);
            all_finite &= (number & 0x7f80) != 0x7f80;
            int64_t rank = part->first + row, group = rank / LANES, pairs = (part->columns + 1) / 2;
            int64_t to = part->is_b ? (column / 2 * part->stride + row) * 2 + column % 2
                                    : ((group * pairs + column / 2) * LANES + rank % LANES) * 2 +
                                          column % 2;
            part->to[to] = number;
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
