/* From decoded images to the views of a batch: the description of a view, and the two functions that make it.
 *
 * resize.c crops, resizes and mirrors a decoded image to a view. operations.c augments the view in place. batch.c calls
 * both for every view of a batch, on threads of its own.
 *
 * Pixels are uint8 RGB, rows of [width, 3] without gaps. The arithmetic is PIL's. Every function is a pure function of
 * its arguments, with the same bits on every processor. They compute with integers, or with float expressions that the
 * compiler may not contract (-ffp-contract=off). Vectorising is left to the compiler. Functions of libm,
 * whose last bits differ between machines, are not called for any pixel.
 */
#ifndef DEIT_FAST_VIEWS_H
#define DEIT_FAST_VIEWS_H

#include <stddef.h>
#include <stdint.h>

/* One function for each generation of x86-64, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(DEIT_FAST_PLAIN)
#if __GNUC__ >= 12
#define SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SIMD __attribute__((target_clones("avx2", "default")))
#endif
#else
#define SIMD
#endif
/* For functions that a SIMD function calls: only inlined functions are compiled for the same processors. */
#define INLINE static inline __attribute__((always_inline))

enum { BICUBIC, BILINEAR };                    /* view_params.BICUBIC, BILINEAR */
enum { GREYSCALE, SOLARISE, BLUR };            /* view_params.GREYSCALE, ... */
enum { BRIGHTNESS, CONTRAST, SATURATION };     /* view_params.jitter's columns */
enum { WINDOW_FIRST, REFLECTED, BLACK };       /* how to read `geometry`, and the pixels beyond the border */

/* A decoded image. */
struct image {
    const uint8_t *pixels;  /* [height, width, 3] */
    int32_t height, width;
};

/* The parameters of one view: a row of native.VIEW. */
struct view {
    int32_t image;        /* index of its image in the batch */
    int32_t geometry[4];  /* as in ViewParams.geometry */
    int32_t kernel;       /* BICUBIC or BILINEAR */
    int32_t flip;         /* 1 mirrors left to right */
    int32_t operation;    /* of 3-Augment: GREYSCALE, SOLARISE, BLUR, or -1 for none */
    float sigma;          /* standard deviation of the blur, px */
    int32_t order[3];     /* kinds of the jitter's steps: BRIGHTNESS, CONTRAST, SATURATION; -1 for none */
    float factors[3];     /* the factor of each step (not of each kind) */
};

/* A policy's operations, for all views of a batch. */
struct policy {
    int32_t count;               /* n, number of operations in a row; 0 without a policy */
    int32_t width;               /* A, number of arguments of each operation, padded with zeros */
    const int32_t *operations;   /* [views, n], numbers of functions in operations.c; 0 leaves the view unchanged */
    const float *arguments;      /* [views, n, A], computed by operations/ from level and sign */
};

/* resize.c: makes the view [side, side, 3] of an image, cropped, resized and mirrored as `drawn` says. scratch:
 * resize_scratch(...) bytes. border: REFLECTED or BLACK; WINDOW_FIRST reads geometry as a window of the image. */
void resize_view(const struct image *image, const struct view *drawn, int border, int side, uint8_t *view, void *scratch);
size_t resize_scratch(const struct image *image, const struct view *drawn, int border, int side);

/* operations.c: augments a view [side, side, 3] in place after the resize and the flip: 3-Augment's choice, then
 * the policy's n operations, then the jitter. number: the view's place in the batch, which is its row of `policy`.
 * scratch: augment_scratch(side) bytes at a multiple of 64. */
void augment_view(uint8_t *view, int side, const struct view *drawn, const struct policy *policy, int number, void *scratch);
size_t augment_scratch(int side);

#endif
