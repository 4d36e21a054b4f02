/* From decoded images to the views of a batch: what a view is, and the two rooms that make it.
 *
 * resize.c cuts, resizes and mirrors a window of a decoded image into a view; operations.c does all that follows to the
 * view, in place. batch.c calls both for every view of a batch, on threads of its own.
 *
 * Pixels are uint8 RGB, rows of [width, 3] without gaps. The arithmetic is PIL's. Everything is a pure function of its
 * arguments, to the bit, on every processor: integers, or float expressions that no compiler may contract
 * (-ffp-contract=off); what is vectorised is vectorised by the compiler, and functions of libm, whose last bits differ
 * between machines, are called for no pixel.
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
/* For what a SIMD function calls: only what is inlined is compiled for the same processors. */
#define INLINE static inline __attribute__((always_inline))

enum { BICUBIC, BILINEAR };                    /* view_params.BICUBIC, BILINEAR */
enum { GREYSCALE, SOLARISE, BLUR };            /* view_params.GREYSCALE, ... */
enum { BRIGHTNESS, CONTRAST, SATURATION };     /* view_params.jitter's columns */
enum { WINDOW_FIRST, REFLECTED, BLACK };       /* how `geometry` is read, and what lies beyond the border */

/* A decoded image. */
struct image {
    const uint8_t *pixels;  /* [height, width, 3] */
    int32_t height, width;
};

/* What was drawn for one view: a row of native.VIEW. */
struct view {
    int32_t image;        /* its place among the batch's images */
    int32_t geometry[4];  /* as ViewParams.geometry */
    int32_t kernel;       /* BICUBIC or BILINEAR */
    int32_t flip;         /* 1 mirrors left to right */
    int32_t operation;    /* 3-Augment's: GREYSCALE, SOLARISE, BLUR, or -1 for none */
    float sigma;          /* of the blur, px */
    int32_t order[3];     /* kinds of the jitter's steps: BRIGHTNESS, CONTRAST, SATURATION; -1 for none */
    float factors[3];     /* the factor of each step (not of each kind) */
};

/* A policy's operations, for all views of a batch. */
struct policy {
    int32_t count;               /* n, operations in a row; 0 for no policy */
    int32_t width;               /* A, arguments of an operation, zeros after its own */
    const int32_t *operations;   /* [views, n], numbers of the functions in operations.c; 0 leaves the view as it is */
    const float *arguments;      /* [views, n, A], as operations/ computes them by level and sign */
};

/* resize.c: the view [side, side, 3] of an image: its window, resized and mirrored as `drawn` says. scratch:
 * resize_scratch(...) bytes. border: REFLECTED or BLACK; WINDOW_FIRST reads geometry as a window of the image. */
void resize_view(const struct image *image, const struct view *drawn, int border, int side, uint8_t *view, void *scratch);
size_t resize_scratch(const struct image *image, const struct view *drawn, int border, int side);

/* operations.c: all that follows the resize and the flip, in place on a view [side, side, 3]: 3-Augment's choice, then
 * the policy's n operations, then the jitter. number: the view's place in the batch, which is its row of `policy`.
 * scratch: augment_scratch(side) bytes at a multiple of 64. */
void augment_view(uint8_t *view, int side, const struct view *drawn, const struct policy *policy, int number, void *scratch);
size_t augment_scratch(int side);

#endif
