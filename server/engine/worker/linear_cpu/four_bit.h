/* Products with weights in 4 bits.
 *
 * For each LANES features out there are (features in / WORD_WEIGHTS, LANES) words. A word has the
 * weights of WORD_WEIGHTS features in that follow each other, each as a number from 0 to 15 that
 * stands for -8 to 7. Those of features 0, 2, 4 and 6 stand in its lower half, from the lowest bits
 * on, and those of 1, 3, 5 and 7 in its upper half: two neighbours become a pair of bfloat16. The
 * scales are (groups, LANES) in bfloat16, and the
 * zeros, if there are any, are (groups, LANES) and are subtracted from the weights of a group. The
 * products of a group are summed before they are scaled.
 */
#pragma once
#include "../vectors.h"
#ifdef __AVX512F__
#include <immintrin.h>
#endif

/* As many rows and columns of LANES features as there are registers for their sums. */
#ifdef __AVX512F__
enum { MOST_ROWS = 12, COLUMNS = 2, FEW_ROWS = 4, COLUMNS_OF_FEW = 4 };
#else
enum { MOST_ROWS = 4, COLUMNS = 1, FEW_ROWS = 1, COLUMNS_OF_FEW = 2 };
#endif
enum { WORD_WEIGHTS = 8 };

/* How a product reads the rows of x: as they are, or, without an instruction for bfloat16,
 * converted once to float32. */
#ifdef __AVX512BF16__
typedef uint16_t number;
#else
typedef float number;
#endif

#ifdef __AVX512BF16__
/* Weights `2 * i` and `2 * i + 1` of each word as a pair. Callers give a constant for `has_zeros`;
 * with it, `offset` has 8 less the zero of each lane, in both halves of 16 bits. */
INLINE vpair pair_of(int has_zeros, vpair word, int i, vpair offset) {
    /* The instruction looks at the lowest 5 bits of each half. */
    const vfloat negative = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    vfloat low = has_zeros ? negative - 8 : negative, high = has_zeros ? negative + 8 : negative;
    __m512i table = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    vpair index = word >> (4 * i);
    if (has_zeros) index = (index & 0x000f000f) + offset;
    return (vpair)_mm512_permutexvar_epi16((__m512i)index, table);
}
#else
/* Weight `i` of each word, less its zero. Callers give constants for `has_zeros` and `i`. */
INLINE vfloat weight_of(int has_zeros, vpair word, int i, vfloat zero) {
    vpair number = word >> (4 * (i / 2) + 16 * (i % 2));
#ifdef __AVX512F__
    /* The instruction looks at the lowest 4 bits only. */
    const vfloat values = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    vfloat weight = (vfloat)_mm512_permutexvar_ps((__m512i)number, (__m512)values);
#else
    typedef int32_t vint __attribute__((vector_size(4 * LANES)));
    vfloat weight = __builtin_convertvector((vint)(number & 15), vfloat) - 8;
#endif
    return has_zeros ? weight - zero : weight;
}
#endif

/* What is subtracted from the weights of LANES features out, as `pair_of` or `weight_of` takes it. */
#ifdef __AVX512BF16__
typedef vpair offset_t;
#else
typedef vfloat offset_t;
#endif
INLINE offset_t offset_of(const int8_t *zeros) {
    typedef int8_t vzeros __attribute__((vector_size(LANES)));
    vzeros each;
    memcpy(&each, zeros, sizeof each);
#ifdef __AVX512BF16__
    vpair offset = __builtin_convertvector(8 - each, vpair) & 0xffff;
    return offset | offset << 16;
#else
    return __builtin_convertvector(each, vfloat);
#endif
}

/* Adds the products of a word of each column with its features of each row. */
INLINE void add_word(int rows, int columns, int has_zeros, vfloat sum[][COLUMNS_OF_FEW],
                     const number *const *x, ptrdiff_t feature, const uint32_t *weights,
                     ptrdiff_t stride, const offset_t *zero) {
    vpair word[COLUMNS_OF_FEW];
    for (int c = 0; c < columns; c++) word[c] = load_pairs(weights + c * stride);
#ifdef __AVX512BF16__
    for (int i = 0; i < WORD_WEIGHTS / 2; i++) {
        vpair pair[COLUMNS_OF_FEW];
        for (int c = 0; c < columns; c++) pair[c] = pair_of(has_zeros, word[c], i, zero[c]);
        for (int m = 0; m < rows; m++) {
            uint32_t both;
            memcpy(&both, x[m] + feature + 2 * i, sizeof both);
            vpair factor = (vpair){0} + both;
            for (int c = 0; c < columns; c++)
                sum[m][c] = (vfloat)_mm512_dpbf16_ps((__m512)sum[m][c], (__m512bh)factor,
                                                     (__m512bh)pair[c]);
        }
    }
#else
    for (int i = 0; i < WORD_WEIGHTS; i++) {
        vfloat weight[COLUMNS_OF_FEW];
        for (int c = 0; c < columns; c++)
            weight[c] = weight_of(has_zeros, word[c], i, zero[c]);
        for (int m = 0; m < rows; m++)
            for (int c = 0; c < columns; c++) sum[m][c] += x[m][feature + i] * weight[c];
    }
#endif
}

/* Adds the products of group `g` of each row with that of each column. Columns are `stride` words
 * and `groups` scales apart. */
INLINE void add_group(int rows, int columns, int has_zeros, vfloat sum[][COLUMNS_OF_FEW],
                      const number *const *x, ptrdiff_t g, ptrdiff_t group,
                      const uint32_t *weights, ptrdiff_t stride, const uint16_t *scales,
                      const int8_t *zeros, ptrdiff_t groups) {
    vfloat part[MOST_ROWS][COLUMNS_OF_FEW] = {0};
    offset_t zero[COLUMNS_OF_FEW] = {0};
    for (int c = 0; c < columns && has_zeros; c++)
        zero[c] = offset_of(zeros + (c * groups + g) * LANES);
    weights += g * group / WORD_WEIGHTS * LANES;
    for (ptrdiff_t f = g * group; f < (g + 1) * group; f += WORD_WEIGHTS, weights += LANES)
        add_word(rows, columns, has_zeros, part, x, f, weights, stride, zero);
    for (int c = 0; c < columns; c++) {
        vfloat scale = load(scales + (c * groups + g) * LANES, LANES);
        for (int m = 0; m < rows; m++) sum[m][c] += part[m][c] * scale;
    }
}
