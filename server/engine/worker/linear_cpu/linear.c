/* Computes one linear layer: y = x W + bias. */
#include "linear.h"

#ifndef __AVX512BF16__
static void convert(float *to, const uint16_t *from, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(to + i, &bits, sizeof bits);
    }
}
#endif

/* x: (rows, in), y: (rows, out); strides in numbers. `scratch` has rows * in float32. */
void linear_rows(const linear_t *layer, const uint16_t *x, int64_t x_stride, uint16_t *y,
                 int64_t y_stride, int64_t rows, float *scratch) {
#ifdef __AVX512BF16__
#pragma omp parallel
    compute(layer, x, x_stride, y, y_stride, rows);
#else
    int64_t in = layer->in;
#pragma omp parallel
    if (rows * in <= COPY_NUMBERS) { /* a copy for each thread saves waiting for the others */
        float copy[COPY_NUMBERS];
        for (int64_t row = 0; row < rows; row++) convert(copy + row * in, x + row * x_stride, in);
        compute(layer, copy, in, y, y_stride, rows);
    } else {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            convert(scratch + row * in, x + row * x_stride, in);
        compute(layer, scratch, in, y, y_stride, rows);
    }
#endif
}
