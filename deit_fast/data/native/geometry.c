/* Rotate, the shears and the translations: PIL's transform by an affine map, bicubic. */
#include <string.h>

#include "operations.h"

#define EDGE 2   /* px around the copy of the view: they repeat its outermost pixels, for the cubic filter */
#define CELL 4   /* floats per pixel of the copy, so that four neighbours form one vector */

typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef int32_t ints4 __attribute__((vector_size(16)));
typedef float floats4 __attribute__((vector_size(16)));
typedef float floats16 __attribute__((vector_size(64)));

static const uint8_t FILL[3] = {124, 116, 104}; /* the ImageNet mean, rounded: operations/geometry.py */

/* PIL's cubic through values at -1, 0, 1 and 2; exact if these are equal. A macro, to take vectors of any length. */
#define CUBIC(v0, v1, v2, v3, at)                                           \
    ({                                                                      \
        __typeof__(v0) first_ = (v0) - (v1), last_ = (v2) - (v3);           \
        __typeof__(v0) slope_ = (v2) - (v0), both_ = first_ + last_;        \
        (v1) + (at) * (slope_ + (at) * (first_ + both_ - (at) * both_));    \
    })

/* Number of floats in a row of the copy. */
static size_t copy_width(int side) { return (size_t)(side + 2 * EDGE) * CELL; }

SIMD static void copy_with_edges(const uint8_t *view, int side, float *copy) {
    size_t width = copy_width(side), bytes = width * sizeof(float);
    for (int y = 0; y < side; y++) {
        const uint8_t *restrict from = view + (size_t)y * side * 3;
        float *restrict to = copy + (size_t)(y + EDGE) * width;
        for (int x = 0; x < side; x++)
            for (int channel = 0; channel < CELL; channel++)
                to[CELL * (x + EDGE) + channel] = channel < 3 ? from[3 * x + channel] : 0.0f;
        for (int edge = 0; edge < EDGE; edge++) {
            memcpy(to + CELL * edge, to + CELL * EDGE, CELL * sizeof(float));
            memcpy(to + CELL * (side + EDGE + edge), to + CELL * (side + EDGE - 1), CELL * sizeof(float));
        }
    }
    for (int edge = 0; edge < EDGE; edge++) {
        memcpy(copy + edge * width, copy + EDGE * width, bytes);
        memcpy(copy + (side + EDGE + edge) * width, copy + (side + EDGE - 1) * width, bytes);
    }
}

/* Reads a vector of CELL floats, or of four times as many; a macro for both types. */
#define READ(type, from)                      \
    ({                                        \
        type values_;                         \
        memcpy(&values_, (from), sizeof(type)); \
        values_;                              \
    })

/* Truncated as PIL does, clamped to 0..255. */
INLINE void write_pixel(floats4 value, uint8_t *to) {
    const floats4 white = {255.0f, 255.0f, 255.0f, 255.0f};
    value = (floats4)((ints4)value & (value > 0.0f));
    ints4 below = value < white;
    value = (floats4)(((ints4)value & below) | ((ints4)white & ~below));
    bytes16 bytes = (bytes16)__builtin_convertvector(value, ints4);
    to[0] = bytes[0], to[1] = bytes[4], to[2] = bytes[8];
}

/* along_x, along_y: whether each coordinate moves; compile-time constants. */
INLINE void warp_by(uint8_t *view, int side, const double *matrix, const float *copy, int along_x, int along_y) {
    size_t width = copy_width(side);
    for (int y = 0; y < side; y++) {
        uint8_t *to = view + (size_t)y * side * 3;
        for (int x = 0; x < side; x++, to += 3) {
            double source_x = matrix[0] * (x + 0.5) + matrix[1] * (y + 0.5) + matrix[2];
            double source_y = matrix[3] * (x + 0.5) + matrix[4] * (y + 0.5) + matrix[5];
            if (!(source_x >= 0.0 && source_x < side && source_y >= 0.0 && source_y < side)) {
                memcpy(to, FILL, 3);
                continue;
            }
            /* The pixel at or before the source position, counted from the copy's corner, and the distance past it. */
            int column = (int)(source_x + (EDGE - 0.5)), row = (int)(source_y + (EDGE - 0.5));
            float past_x = (float)(source_x + (EDGE - 0.5) - column), past_y = (float)(source_y + (EDGE - 0.5) - row);
            const float *from = copy + row * width + (size_t)column * CELL;
            if (along_x) {
                const float *left = from - CELL;
                floats16 pixels = READ(floats16, left);
                if (along_y)
                    pixels = CUBIC(READ(floats16, left - width), pixels, READ(floats16, left + width),
                                   READ(floats16, left + 2 * width), past_y);
                floats4 four[4];
                memcpy(four, &pixels, sizeof four);
                write_pixel(CUBIC(four[0], four[1], four[2], four[3], past_x), to);
            } else {
                write_pixel(CUBIC(READ(floats4, from - width), READ(floats4, from), READ(floats4, from + width),
                                  READ(floats4, from + 2 * width), past_y), to);
            }
        }
    }
}

SIMD static void warp_from(uint8_t *view, int side, const double *matrix, const float *copy) {
    int along_x = !(matrix[0] == 1.0 && matrix[1] == 0.0 && matrix[2] == 0.0);
    int along_y = !(matrix[3] == 0.0 && matrix[4] == 1.0 && matrix[5] == 0.0);
    if (along_x && along_y) warp_by(view, side, matrix, copy, 1, 1);
    else if (along_x) warp_by(view, side, matrix, copy, 1, 0);
    else if (along_y) warp_by(view, side, matrix, copy, 0, 1);
}

void warp(uint8_t *view, int side, const float *matrix, void *scratch) {
    double exact[6];
    for (int each = 0; each < 6; each++) exact[each] = matrix[each];
    copy_with_edges(view, side, scratch);
    warp_from(view, side, exact, scratch);
}

size_t warp_scratch(int side) { return copy_width(side) * (size_t)(side + 2 * EDGE) * sizeof(float); }
