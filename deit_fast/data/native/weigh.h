/* The inner loop of the resize: weighed sums of pixels, half added and rounded down, as values from 0 to 255. */
#ifndef DEIT_FAST_WEIGH_H
#define DEIT_FAST_WEIGH_H

#include "views.h"

#define BITS 22    /* of a weight's fraction, as in Pillow */
#define GROUP 48   /* values that are weighed together */

/* Writes `count` weighed rows' sum: row t is the GROUP values at from + t * gap, its weight is weight[t]. parts is what
 * part_weights made of the weights. Where count is odd, the row after the last one is read as well, and not used. */
typedef void weigh_rows_of_group(
    const uint16_t *from, size_t gap, const int32_t *weight, const int32_t *parts, int count, uint8_t *to
);

/* The fastest that this processor has. All of them write the same values. */
weigh_rows_of_group *choose_weigh(void);

/* Weights as the multiplications of 16 bits take them: for each two weights a pair of their upper and one of their lower
 * parts. parts: `count` values rounded up to an even number. */
void part_weights(const int32_t *weight, int count, int32_t *parts);

INLINE uint8_t clip(int32_t sum) {
    sum >>= BITS;
    return sum < 0 ? 0 : sum > 255 ? 255 : sum;
}

#endif
