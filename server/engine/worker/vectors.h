/* Vectors of float32 and of pairs of bfloat16, for the kernels on CPU.
 *
 * The vector extensions of GCC and Clang are used, so one source serves AVX2, AVX-512 and NEON. Two
 * bfloat16 stand in the 32 bits of a lane: the processor's bfloat16 instruction (VDPBF16PS of
 * AVX512-BF16) needs them so.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

enum { LANES = 16 };

typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef uint32_t vpair __attribute__((vector_size(4 * LANES))); /* two bfloat16 in each lane */
typedef uint64_t vlong __attribute__((vector_size(4 * LANES))); /* two pairs in each */
typedef uint16_t vbf16 __attribute__((vector_size(2 * LANES)));

#define INLINE static inline __attribute__((always_inline))

/* The first and the second bfloat16 of each lane. */
INLINE vfloat first_of(vpair pair) { return (vfloat)(pair << 16); }
INLINE vfloat second_of(vpair pair) { return (vfloat)(pair & 0xffff0000); }

INLINE vpair load_pairs(const uint32_t *from) {
    vpair pairs;
    memcpy(&pairs, from, sizeof pairs);
    return pairs;
}

INLINE vfloat load(const uint16_t *from, ptrdiff_t count) {
    vbf16 half = {0};
    if (count >= LANES) memcpy(&half, from, sizeof half);
    else memcpy(&half, from, 2 * count);
#ifdef __AVX512F__ /* GCC makes four instructions of the line below */
    vpair bits = (vpair)_mm512_cvtepu16_epi32((__m256i)half);
#else
    vpair bits = __builtin_convertvector(half, vpair);
#endif
    return (vfloat)(bits << 16);
}

INLINE void store(uint16_t *to, vfloat value, ptrdiff_t count) {
#ifdef __AVX512BF16__
    vbf16 half = (vbf16)_mm512_cvtneps_pbh((__m512)value);
#else
    vpair bits = (vpair)value;
    vpair rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest, ties to even */
    vpair is_nan = (vpair)(value != value);
    vbf16 half = __builtin_convertvector((rounded & ~is_nan) | (0x7fc0 & is_nan), vbf16);
#endif
    if (count >= LANES) memcpy(to, &half, sizeof half);
    else memcpy(to, &half, 2 * count);
}

/* Some pairs of bfloat16 at `from`, again and again until all lanes are full. */
INLINE vpair one_pair(const uint16_t *from) {
    uint32_t pair;
    memcpy(&pair, from, sizeof pair);
    return (vpair){0} + pair;
}

INLINE vpair two_pairs(const uint16_t *from) {
    uint64_t pairs;
    memcpy(&pairs, from, sizeof pairs);
    return (vpair)((vlong){0} + pairs);
}

#ifdef __AVX512F__ /* GCC makes several instructions of the shuffles below */
INLINE vpair four_pairs(const uint16_t *from) {
    return (vpair)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)from));
}

INLINE vpair eight_pairs(const uint16_t *from) {
    return (vpair)_mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)from));
}
#else
INLINE vpair four_pairs(const uint16_t *from) {
    vpair pairs = {0};
    memcpy(&pairs, from, 16);
    return __builtin_shufflevector(pairs, pairs, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
}

INLINE vpair eight_pairs(const uint16_t *from) {
    vpair pairs = {0};
    memcpy(&pairs, from, 32);
    return __builtin_shufflevector(pairs, pairs, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
}
#endif
