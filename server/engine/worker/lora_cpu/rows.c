/* Adds the adapters of one linear layer. */
#include "rows.h"

/* Returns 0, or the slot + 1 of a block whose slot is empty; then nothing is computed. `u` is
 * scratch memory for blocks * BLOCK_ROWS * max_ranks bfloat16. */
int64_t lora_rows(const layer_t *layer, const uint16_t *x, int64_t x_stride, uint16_t *y,
                  int64_t y_stride, const block_t *block, int64_t blocks, float scale,
                  uint16_t *u) {
    int64_t work = 0;
    for (int64_t i = 0; i < blocks; i++) {
        const adapter_t *adapter = layer->adapter[block[i].slot];
        if (!adapter) return block[i].slot + 1;
        work += adapter->size;
    }
    /* `parallel if` isn't used: after a team of one, libgomp would build a new team for the next
     * region. */
    if (work <= PARALLEL_WORK) {
        shrink_blocks(layer, x, x_stride, block, blocks, scale, u);
        expand_blocks(layer, y, y_stride, block, blocks, u);
    } else {
#pragma omp parallel
        {
            shrink_blocks(layer, x, x_stride, block, blocks, scale, u);
#pragma omp barrier
            expand_blocks(layer, y, y_stride, block, blocks, u);
        }
    }
    return 0;
}
