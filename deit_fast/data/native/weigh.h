/* The inner loop of the resize: weighted sums of pixels, rounded to values from 0 to 255. */
#ifndef DEIT_FAST_WEIGH_H
#define DEIT_FAST_WEIGH_H

#include "views.h"

#define BITS 22    /* fractional bits of a weight, as in Pillow */
#define GROUP 48   /* values that are summed together */

/* Writes the weighted sum of `count` rows: row t has the GROUP values at from + t * gap, and the weight weight[t].
 * parts: from part_weights, for these weights. If count is odd, the row after the last one is read too, but not used. */
typedef void weigh_rows_of_group(
    const uint16_t *from, size_t gap, const int32_t *weight, const int32_t *parts, int count, uint8_t *to
);

/* The fastest implementation for this processor. All implementations write the same values. */
weigh_rows_of_group *choose_weigh(void);

/* Converts weights for 16-bit multiplications: for each two weights, a pair of their upper and a pair of their lower
 * parts. parts: has room for `count` values, rounded up to an even number. */
void part_weights(const int32_t *weight, int count, int32_t *parts);

INLINE uint8_t clip(int32_t sum) {
    sum >>= BITS;
    return sum < 0 ? 0 : sum > 255 ? 255 : sum;
}

#endif
