/* What is known of a linear layer. */
#pragma once
#include <stdint.h>

typedef struct {
    const uint32_t *weights;
    const float *bias; /* or null */
    int64_t in, out;   /* `in` is even, and `out` a multiple of LANES */
    const uint16_t *scales; /* of weights in 4 bits; null for bfloat16 */
    const int8_t *zeros;    /* of weights in 4 bits, or null */
    int64_t group;          /* how many features in share a scale: a multiple of WORD_WEIGHTS */
} linear_t;
