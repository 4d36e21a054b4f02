/* The functions that operations.c calls. Each one works in place on a view, uint8 [side, side, 3].
 *
 * The arithmetic is PIL's to the bit, with two exceptions. The blur is a Gaussian, as in DALI's graph; PIL has three
 * box filters. The geometric operations compute cubic weights in float32; PIL computes them in double.
 */
#ifndef DEIT_FAST_OPERATIONS_H
#define DEIT_FAST_OPERATIONS_H

#include "views.h"

enum { UNTOUCHED = -1 };

/* colour.c: GREYSCALE or SOLARISE or neither, then `count` of PIL's ImageEnhance, each `degenerate + factor * (value -
 * degenerate)`: the degenerate image is black (BRIGHTNESS), the rounded mean luma (CONTRAST) or the greyscale image
 * (SATURATION). */
void change_colours(uint8_t *view, int side, int operation, const int32_t *kinds, const float *factors, int count);

/* point.c: inverts values from `threshold` on, keeps the bits of `mask`, adds `addend` to values below 128. */
void change_values(uint8_t *view, int side, int threshold, int mask, int addend);

/* histogram.c: PIL's ImageOps.autocontrast and equalize. */
void auto_contrast(uint8_t *view, int side);
void equalize(uint8_t *view, int side);

/* filter.c: a Gaussian blur, reflected at the border without repeating the edge; and PIL's Sharpness, a blend with its
 * SMOOTH filter. */
void blur(uint8_t *view, int side, float sigma, void *scratch);
void sharpen(uint8_t *view, int side, float factor, void *scratch);

/* geometry.c: the affine map [2, 3] from output to input pixels, bicubic with a = -1; edges are repeated, and
 * uncovered pixels get the ImageNet mean. */
void warp(uint8_t *view, int side, const float *matrix, void *scratch);

size_t filter_scratch(int side);
size_t warp_scratch(int side);

#endif
