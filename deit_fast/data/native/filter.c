/* Operations that mix a pixel with its neighbours: the Gaussian blur and Sharpness. */
#include <math.h>
#include <string.h>

#include "operations.h"

#define MOST 6  /* radius of the blur with 3-Augment's largest sigma, 2; px */
#define ALIGN 64

/* e^-x for x >= 0 from the power series, so that it has the same bits on every machine. */
static double decay(double x) {
    double power = 1.0, term = 1.0;
    int halvings = 0;
    for (; x > 0.5; x /= 2) halvings++;
    for (int order = 1; order < 20; order++) power += term *= x / order;
    while (halvings--) power *= power;
    return 1.0 / power;
}

static int weigh_distances(float sigma, float *weights) {
    int radius = (int)ceilf(3 * sigma);
    double exact[MOST + 1], sum = 0.0;
    if (radius > MOST) radius = MOST;
    for (int distance = 0; distance <= radius; distance++) {
        exact[distance] = decay(distance * distance / (2.0 * sigma * sigma));
        sum += distance ? 2 * exact[distance] : exact[distance];
    }
    for (int distance = 0; distance <= radius; distance++) weights[distance] = (float)(exact[distance] / sum);
    return radius;
}

static int reflected(int at, int length) {
    if (length == 1) return 0;
    while (at < 0 || at >= length) at = at < 0 ? -at : 2 * (length - 1) - at;
    return at;
}

/* radius is a compile-time constant, so that all sums stay in registers. */
INLINE void blur_column(const uint8_t *const *above, const uint8_t *const *below, int radius, const float *weights,
                        int values, float *restrict to) {
    for (int each = 0; each < values; each++) {
        float sum = weights[0] * (float)above[0][each];
#pragma GCC unroll 16
        for (int distance = 1; distance <= radius; distance++)
            sum += weights[distance] * (float)((int)above[distance][each] + (int)below[distance][each]);
        to[each] = sum;
    }
}

/* from: has `radius` additional pixels at both ends. */
INLINE void blur_row(const float *from, int radius, const float *weights, int values, uint8_t *restrict to) {
    for (int each = 0; each < values; each++) {
        float sum = weights[0] * from[each] + 0.5f;
#pragma GCC unroll 16
        for (int distance = 1; distance <= radius; distance++)
            sum += weights[distance] * (from[each - 3 * distance] + from[each + 3 * distance]);
        to[each] = (uint8_t)(int32_t)(sum > 255.0f ? 255.0f : sum);
    }
}

static size_t blur_row_bytes(int side) { return ((size_t)(side + 2 * MOST) * 3 * sizeof(float) + ALIGN - 1) / ALIGN * ALIGN; }

INLINE void blur_by(uint8_t *view, int side, int radius, const float *weights, void *scratch) {
    const uint8_t *above[MOST + 1], *below[MOST + 1];
    uint8_t *copy = (uint8_t *)scratch + blur_row_bytes(side);
    float *middle = (float *)scratch + 3 * MOST;
    int values = 3 * side;
    memcpy(copy, view, (size_t)values * side);
    for (int y = 0; y < side; y++) {
        for (int distance = 0; distance <= radius; distance++) {
            above[distance] = copy + (size_t)reflected(y - distance, side) * values;
            below[distance] = copy + (size_t)reflected(y + distance, side) * values;
        }
        blur_column(above, below, radius, weights, values, middle);
        for (int distance = 1; distance <= radius; distance++)
            for (int channel = 0; channel < 3; channel++) {
                middle[-3 * distance + channel] = middle[3 * reflected(-distance, side) + channel];
                middle[values + 3 * (distance - 1) + channel] = middle[3 * reflected(side - 1 + distance, side) + channel];
            }
        blur_row(middle, radius, weights, values, view + (size_t)y * values);
    }
}

SIMD void blur(uint8_t *view, int side, float sigma, void *scratch) {
    float weights[MOST + 1] = {0};
    switch (weigh_distances(sigma, weights)) {
    case 1: blur_by(view, side, 1, weights, scratch); break;
    case 2: blur_by(view, side, 2, weights, scratch); break;
    case 3: blur_by(view, side, 3, weights, scratch); break;
    case 4: blur_by(view, side, 4, weights, scratch); break;
    case 5: blur_by(view, side, 5, weights, scratch); break;
    default: blur_by(view, side, MOST, weights, scratch);
    }
}

/* Blends the values of a row with PIL's SMOOTH, rounded; a multiple of 1/13 is never halfway between two integers. */
INLINE void sharpen_row(const uint8_t *restrict above, const uint8_t *restrict here, const uint8_t *restrict below,
                        float factor, int values, uint8_t *restrict to) {
    for (int each = 3; each < values - 3; each++) {
        uint16_t sum = above[each - 3] + above[each] + above[each + 3] + here[each - 3] + 5 * here[each] + here[each + 3]
                       + below[each - 3] + below[each] + below[each + 3] + 6;
        float smooth = (uint16_t)((uint32_t)sum * 5042 >> 16); /* divides by 13 */
        float value = smooth + factor * ((float)here[each] - smooth);
        value = value < 0.0f ? 0.0f : value;
        to[each] = (uint8_t)(int32_t)(value > 255.0f ? 255.0f : value);
    }
}

/* PIL copies the outermost pixels, so they stay unchanged. */
SIMD void sharpen(uint8_t *view, int side, float factor, void *scratch) {
    size_t values = (size_t)side * 3;
    uint8_t *copy = scratch;
    memcpy(copy, view, values * side);
    for (int y = 1; y < side - 1; y++) {
        const uint8_t *here = copy + y * values;
        sharpen_row(here - values, here, here + values, factor, (int)values, view + y * values);
    }
}

size_t filter_scratch(int side) { return blur_row_bytes(side) + (size_t)side * side * 3; }
