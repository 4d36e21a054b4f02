/* Greyscale, solarise, brightness, contrast and saturation, in as few passes as their order allows.
 *
 * Contrast needs the mean luma of its input. It therefore begins a new pass, and the pass before it sums up the luma.
 */
#include "operations.h"

#define BLOCK 512  /* pixels that stay in the first-level cache during all steps of a pass */

/* The steps that one pass applies to each pixel. */
struct pass {
    int greyscale, solarise; /* done first */
    int grey;                /* the view is grey already: one channel stands for three */
    const int32_t *kinds;    /* BRIGHTNESS, CONTRAST or SATURATION */
    const float *factors;
    int count;
    float centre;            /* the mean luma, for contrast */
    int sums;                /* whether to sum up the luma of the result */
};

struct block {
    uint8_t channel[3][BLOCK];
    float luma[BLOCK];
};

INLINE void split(const uint8_t *restrict pixels, int count, struct block *restrict to) {
    for (int each = 0; each < count; each++) {
        to->channel[0][each] = pixels[3 * each];
        to->channel[1][each] = pixels[3 * each + 1];
        to->channel[2][each] = pixels[3 * each + 2];
    }
}

INLINE void join(const uint8_t *restrict red, const uint8_t *restrict green, const uint8_t *restrict blue, int count,
                 uint8_t *restrict pixels) {
    for (int each = 0; each < count; each++) {
        pixels[3 * each] = red[each];
        pixels[3 * each + 1] = green[each];
        pixels[3 * each + 2] = blue[each];
    }
}

/* PIL's convert("L"), (19595 R + 38470 G + 7471 B + 0x8000) >> 16: whole numbers below 2^24, exact in float32. */
INLINE void find_luma(struct block *block, int count) {
    for (int each = 0; each < count; each++) {
        float sum = 19595.0f * block->channel[0][each] + 38470.0f * block->channel[1][each]
                    + 7471.0f * block->channel[2][each] + 32768.0f;
        block->luma[each] = (float)(int32_t)(sum * 0x1p-16f);
    }
}

INLINE uint8_t truncated(float value) {
    value = value < 0.0f ? 0.0f : value;
    return (uint8_t)(int32_t)(value > 255.0f ? 255.0f : value);
}

INLINE void blend_with(float degenerate, uint8_t *values, float factor, int count) {
    for (int each = 0; each < count; each++)
        values[each] = truncated(degenerate + factor * ((float)values[each] - degenerate));
}

INLINE void blend_with_luma(const float *restrict luma, uint8_t *restrict values, float factor, int count) {
    for (int each = 0; each < count; each++)
        values[each] = truncated(luma[each] + factor * ((float)values[each] - luma[each]));
}

/* Returns the sum of the luma of the result if pass->sums is set, else 0. */
SIMD static uint64_t apply_pass(uint8_t *view, int pixels, const struct pass *pass) {
    struct block block;
    uint64_t total = 0;
    int channels = pass->grey || pass->greyscale ? 1 : 3;
    for (int first = 0; first < pixels; first += BLOCK) {
        int count = pixels - first < BLOCK ? pixels - first : BLOCK;
        uint8_t *here = view + 3 * (size_t)first;
        split(here, count, &block);
        if (pass->greyscale) {
            find_luma(&block, count);
            for (int each = 0; each < count; each++) block.channel[0][each] = (uint8_t)(int32_t)block.luma[each];
        }
        if (pass->solarise)
            for (int channel = 0; channel < 3; channel++)
                for (int each = 0; each < count; each++) {
                    uint8_t value = block.channel[channel][each], inverse = 255 - value;
                    block.channel[channel][each] = value < inverse ? value : inverse;
                }
        for (int step = 0; step < pass->count; step++) {
            float factor = pass->factors[step];
            if (pass->kinds[step] == SATURATION) {
                if (channels == 1) continue; /* would blend grey with itself */
                find_luma(&block, count);
                for (int channel = 0; channel < 3; channel++)
                    blend_with_luma(block.luma, block.channel[channel], factor, count);
            } else {
                float degenerate = pass->kinds[step] == CONTRAST ? pass->centre : 0.0f;
                for (int channel = 0; channel < channels; channel++)
                    blend_with(degenerate, block.channel[channel], factor, count);
            }
        }
        if (pass->sums) {
            uint32_t sum = 0;
            if (channels == 3) {
                find_luma(&block, count);
                for (int each = 0; each < count; each++) sum += (uint32_t)(int32_t)block.luma[each];
            } else {
                for (int each = 0; each < count; each++) sum += block.channel[0][each];
            }
            total += sum;
        }
        int changes = pass->count || pass->greyscale || pass->solarise;
        if (changes && channels == 3) join(block.channel[0], block.channel[1], block.channel[2], count, here);
        if (changes && channels == 1) join(block.channel[0], block.channel[0], block.channel[0], count, here);
    }
    return total;
}

void change_colours(uint8_t *view, int side, int operation, const int32_t *kinds, const float *factors, int count) {
    int pixels = side * side, done = 0;
    struct pass pass = {.greyscale = operation == GREYSCALE, .solarise = operation == SOLARISE};
    for (int first = 1; first || done < count; first = 0) {
        int until = done + !first; /* a pass other than the first begins with contrast */
        while (until < count && kinds[until] != CONTRAST) until++;
        pass.kinds = kinds + done, pass.factors = factors + done, pass.count = until - done;
        pass.sums = until < count;
        if (pass.greyscale || pass.solarise || pass.count || pass.sums) {
            uint64_t sum = apply_pass(view, pixels, &pass);
            pass.centre = (float)((2 * sum + (uint64_t)pixels) / (2 * (uint64_t)pixels));
        }
        pass.grey |= pass.greyscale, pass.greyscale = pass.solarise = 0;
        done = until;
    }
}
