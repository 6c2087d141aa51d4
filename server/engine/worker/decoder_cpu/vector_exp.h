/* exp of each lane, with a relative error below 3e-7. */
#pragma once
#include "../vectors.h"

typedef int32_t vint __attribute__((vector_size(4 * LANES)));

INLINE vfloat clamp(vfloat x, float low, float high) {
    vint below = x < low, above = x > high;
    vfloat lows = (vfloat){0} + low, highs = (vfloat){0} + high;
    return (vfloat)(((vint)x & ~below & ~above) | ((vint)lows & below) | ((vint)highs & above));
}

/* exp(x) = 2^n exp(r) with |r| <= ln(2) / 2. ln(2) is subtracted in two parts, so that nothing is
 * lost, and exp(r) is its Taylor series. Results below 2^-126 are 0, and none is above exp(88), which
 * is near the largest float. A NaN stays one. */
INLINE vfloat vector_exp(vfloat x) {
    const float to_round = 0x1.8p23f; /* adding it rounds a float to a whole number */
    vint is_nan = x != x, is_zero = x < -87.33f;
    vfloat kept = clamp(x, -87.33f, 88.f);
    vfloat n = (kept * 1.44269504f + to_round) - to_round;
    vfloat r = kept - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;
    vfloat series = 1 + r * (1 + r * (1.f / 2 + r * (1.f / 6 + r * (1.f / 24 + r * (1.f / 120 +
                    r * (1.f / 720 + r * (1.f / 5040)))))));
    vint exponent = (__builtin_convertvector(n, vint) + 127) << 23;
    vint bits = (vint)(series * (vfloat)exponent);
    return (vfloat)((bits & ~is_zero & ~is_nan) | ((vint)x & is_nan));
}
