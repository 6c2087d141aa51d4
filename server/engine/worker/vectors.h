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
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

enum { LANES = 16 };

typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef uint32_t vpair __attribute__((vector_size(4 * LANES))); /* two bfloat16 in each lane */
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
    return (vfloat)(__builtin_convertvector(half, vpair) << 16);
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
