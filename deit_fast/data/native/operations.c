/* Augments one view after the resize: 3-Augment, then the policy's operations, then the jitter. */
#include "operations.h"

/* Numbers of a policy's functions, in the order of native.OPERATIONS. */
enum { SKIP, AUTO_CONTRAST, EQUALIZE, CHANGE_VALUES, ENHANCE, SHARPEN, WARP };

static void apply_operation(uint8_t *view, int side, int number, const float *arguments, void *scratch) {
    int32_t kind;
    switch (number) {
    case AUTO_CONTRAST: auto_contrast(view, side); break;
    case EQUALIZE: equalize(view, side); break;
    case CHANGE_VALUES: change_values(view, side, (int)arguments[0], (int)arguments[1], (int)arguments[2]); break;
    case ENHANCE: kind = (int32_t)arguments[1], change_colours(view, side, UNTOUCHED, &kind, arguments, 1); break;
    case SHARPEN: sharpen(view, side, arguments[0], scratch); break;
    case WARP: warp(view, side, arguments, scratch); break;
    default: break;
    }
}

void augment_view(uint8_t *view, int side, const struct view *drawn, const struct policy *policy, int number, void *scratch) {
    int steps = 0, operation = drawn->operation;
    if (operation == BLUR) blur(view, side, drawn->sigma, scratch);
    for (int step = 0; step < policy->count; step++) {
        size_t place = (size_t)number * policy->count + step;
        apply_operation(view, side, policy->operations[place], policy->arguments + place * policy->width, scratch);
    }
    while (steps < 3 && drawn->order[steps] >= 0) steps++;
    change_colours(view, side, operation, drawn->order, drawn->factors, steps);
}

size_t augment_scratch(int side) {
    size_t filters = filter_scratch(side), warps = warp_scratch(side);
    return filters > warps ? filters : warps;
}
