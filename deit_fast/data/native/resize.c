/* Resizes a window of an image with antialiasing, mirrored or not: Pillow's resampling (Resample.c), to the bit.
 *
 * Pillow first computes weighted sums along each row and rounds them to uint8, then weighted sums of these rows.
 * Weights have 22 fractional bits. This file differs from Pillow in two points, neither of which changes a value.
 * It computes only the rows and columns that the view needs. It transposes 16 rows at a time, so that the pixels of one
 * column in 16 rows, which have the same weight, are adjacent.
 */
#include <math.h>
#include <string.h>

#include "weigh.h"

#define ROWS 16    /* rows that are summed together: GROUP values are one column of all of them */
#define ALIGN 64

typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint16_t shorts16 __attribute__((vector_size(32)));

/* Weights of one side of the view; for each of its pixels the first input pixel, the number of pixels, the weights. */
struct weights {
    int32_t *first, *count, *weight, *parts; /* parts: the parts of each weight, see weigh.h */
    int32_t most;    /* largest number of weights of a pixel, rounded up to an even number */
    int32_t low, high; /* range of the input pixels that are needed: low <= pixel < high */
};

/* One side of a view: the part of the input that it shows. */
struct side {
    int32_t from;     /* length of the input, px */
    int32_t to;       /* length that it is resized to, px */
    int32_t offset;   /* offset of the view in the resized input, px; the view may reach beyond both ends */
    int32_t mirrored;
};

static double cubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static double linear(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double support_of(const struct side *side, int kernel, double *scale) {
    *scale = (double)side->from / side->to;
    return (kernel == BILINEAR ? 1.0 : 2.0) * (*scale < 1.0 ? 1.0 : *scale);
}

static int32_t most_weights(const struct side *side, int kernel) {
    double scale;
    return (int32_t)ceil(support_of(side, kernel, &scale)) * 2 + 2;
}

/* Fills `to` for the `length` pixels of a view's side. A pixel beyond a BLACK border has no weights. */
static void weigh(const struct side *side, int kernel, int border, int length, struct weights *to) {
    double scale, support = support_of(side, kernel, &scale), step = scale < 1.0 ? 1.0 : 1.0 / scale;
    double (*filter)(double) = kernel == BILINEAR ? linear : cubic;
    double exact[to->most];
    to->low = side->from, to->high = 0;
    for (int place = 0; place < length; place++) {
        int at = side->offset + place, column = side->mirrored ? length - 1 - place : place;
        int32_t *weight = to->weight + (size_t)column * to->most;
        if (border == REFLECTED && at < 0) at = -at;
        if (border == REFLECTED && at >= side->to) at = 2 * (side->to - 1) - at;
        if (at < 0 || at >= side->to) {
            to->first[column] = to->count[column] = 0;
            continue;
        }
        double center = (at + 0.5) * scale, sum = 0.0;
        int first = (int)(center - support + 0.5), last = (int)(center + support + 0.5);
        if (first < 0) first = 0;
        if (last > side->from) last = side->from;
        for (int each = 0; each < last - first; each++) {
            exact[each] = filter((each + first - center + 0.5) * step);
            sum += exact[each];
        }
        for (int each = 0; each < last - first; each++) {
            double share = sum != 0.0 ? exact[each] / sum : exact[each];
            weight[each] = (int32_t)((share < 0 ? -0.5 : 0.5) + share * (1 << BITS));
        }
        part_weights(weight, last - first, to->parts + (size_t)column * to->most);
        to->first[column] = first, to->count[column] = last - first;
        if (first < to->low) to->low = first;
        if (last > to->high) to->high = last;
    }
}

/* Transposes 16 rows of 16 values and widens the values; the results are `gap` values apart. */
INLINE void turn_block(const uint8_t *const *rows, size_t at, uint16_t *turned, size_t gap) {
    const bytes16 low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    const bytes16 high = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    bytes16 now[16], next[16];
    for (int row = 0; row < 16; row++) memcpy(&now[row], rows[row] + at, 16);
    for (int step = 0; step < 4; step++) { /* each step interleaves two halves; four steps transpose */
        for (int row = 0; row < 8; row++) {
            next[2 * row] = __builtin_shuffle(now[row], now[row + 8], low);
            next[2 * row + 1] = __builtin_shuffle(now[row], now[row + 8], high);
        }
        memcpy(now, next, sizeof now);
    }
    for (int row = 0; row < 16; row++) {
        shorts16 wide = __builtin_convertvector(now[row], shorts16);
        memcpy(turned + row * gap, &wide, sizeof wide);
    }
}

/* Transposes 16 rows of `length` values each to [length, 16]. */
INLINE void turn(const uint8_t *const *rows, int length, uint16_t *turned) {
    if (length < 16) {
        for (int value = 0; value < length; value++)
            for (int row = 0; row < ROWS; row++) turned[value * ROWS + row] = rows[row][value];
        return;
    }
    for (int at = 0; at < length; at += 16) {
        int start = at <= length - 16 ? at : length - 16; /* the last block overlaps the one before */
        turn_block(rows, start, turned + (size_t)start * ROWS, ROWS);
    }
}

/* Transposes [length, 16] to 16 rows of `length` values, `gap` values apart. */
INLINE void turn_back(const uint8_t *turned, int length, uint16_t *rows, size_t gap) {
    if (length < 16) {
        for (int value = 0; value < length; value++)
            for (int row = 0; row < ROWS; row++) rows[row * gap + value] = turned[value * ROWS + row];
        return;
    }
    const uint8_t *columns[16];
    for (int at = 0; at < length; at += 16) {
        int start = at <= length - 16 ? at : length - 16;
        for (int value = 0; value < 16; value++) columns[value] = turned + (size_t)(start + value) * ROWS;
        turn_block(columns, 0, rows + start, gap);
    }
}

/* Resizes `height` rows of an image, from column `low` on, to the view's width; writes a multiple of 16 rows. */
SIMD static void weigh_columns(
    const uint8_t *pixels, size_t gap, int height, const struct weights *across, int side, uint16_t *turned,
    uint8_t *weighed, uint16_t *out
) {
    const uint8_t *rows[ROWS];
    weigh_rows_of_group *weigh_group = choose_weigh();
    int width = across->high - across->low;
    for (int top = 0; top < height; top += ROWS) {
        for (int row = 0; row < ROWS; row++) {
            int at = top + row < height ? top + row : height - 1;
            rows[row] = pixels + at * gap + (size_t)across->low * 3;
        }
        turn(rows, width * 3, turned);
        for (int column = 0; column < side; column++) {
            size_t place = (size_t)column * across->most;
            const int32_t *weight = across->weight + place, *parts = across->parts + place;
            const uint16_t *from = turned + (size_t)(across->first[column] - across->low) * GROUP;
            uint8_t *to = weighed + column * GROUP;
            if (across->count[column]) weigh_group(from, GROUP, weight, parts, across->count[column], to);
            else memset(to, 0, GROUP);
        }
        turn_back(weighed, side * 3, out + (size_t)top * side * 3, (size_t)side * 3);
    }
}

SIMD static void weigh_rows(const uint16_t *rows, const struct weights *down, int side, uint8_t *view) {
    weigh_rows_of_group *weigh_group = choose_weigh();
    int length = side * 3;
    for (int row = 0; row < side; row++, view += length) {
        const int32_t *weight = down->weight + (size_t)row * down->most, *parts = down->parts + (size_t)row * down->most;
        const uint16_t *from = rows + (size_t)(down->first[row] - down->low) * length;
        int count = down->count[row], at = 0;
        if (!count) {
            memset(view, 0, length);
            continue;
        }
        for (; at + GROUP <= length; at += GROUP) weigh_group(from + at, length, weight, parts, count, view + at);
        for (; at < length; at++) {
            int32_t sum = 1 << (BITS - 1);
            for (int tap = 0; tap < count; tap++) sum += weight[tap] * from[(size_t)tap * length + at];
            view[at] = clip(sum);
        }
    }
}

static void sides(const struct image *image, const struct view *drawn, int border, int side, struct side *down,
                  struct side *across) {
    const int32_t *geometry = drawn->geometry;
    if (border == WINDOW_FIRST) {
        *down = (struct side){geometry[2], side, 0, 0};
        *across = (struct side){geometry[3], side, 0, drawn->flip};
    } else {
        *down = (struct side){image->height, geometry[0], geometry[2], 0};
        *across = (struct side){image->width, geometry[1], geometry[3], drawn->flip};
    }
}

static uint8_t *take(uint8_t **scratch, size_t bytes) {
    uint8_t *taken = *scratch;
    *scratch += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return taken;
}

/* Places of all buffers in the scratch memory, whose size is the distance from its start to `end`. */
struct room {
    struct weights down, across;
    uint16_t *turned, *rows;
    uint8_t *weighed, *end;
};

static void furnish(const struct side *down, const struct side *across, int kernel, int side, uint8_t *at, struct room *room) {
    struct weights *each[2] = {&room->down, &room->across};
    const struct side *of[2] = {down, across};
    for (int which = 0; which < 2; which++) {
        each[which]->most = most_weights(of[which], kernel);
        each[which]->first = (int32_t *)take(&at, sizeof(int32_t) * side);
        each[which]->count = (int32_t *)take(&at, sizeof(int32_t) * side);
        each[which]->weight = (int32_t *)take(&at, sizeof(int32_t) * side * each[which]->most);
        each[which]->parts = (int32_t *)take(&at, sizeof(int32_t) * side * each[which]->most);
    }
    room->turned = (uint16_t *)take(&at, sizeof(uint16_t) * (across->from + 1) * GROUP);
    room->weighed = take(&at, (size_t)side * GROUP);
    room->rows = (uint16_t *)take(&at, sizeof(uint16_t) * (down->from + ROWS) * side * 3);
    room->end = at;
}

size_t resize_scratch(const struct image *image, const struct view *drawn, int border, int side) {
    struct side down, across;
    struct room room;
    uint8_t *start = (uint8_t *)ALIGN;
    sides(image, drawn, border, side, &down, &across);
    furnish(&down, &across, drawn->kernel, side, start, &room);
    return room.end - start;
}

void resize_view(const struct image *image, const struct view *drawn, int border, int side, uint8_t *view, void *scratch) {
    struct side down, across;
    struct room room;
    size_t gap = (size_t)image->width * 3;
    const uint8_t *pixels = image->pixels;
    sides(image, drawn, border, side, &down, &across);
    furnish(&down, &across, drawn->kernel, side, scratch, &room);
    weigh(&down, drawn->kernel, border, side, &room.down);
    weigh(&across, drawn->kernel, border, side, &room.across);
    if (room.down.low >= room.down.high || room.across.low >= room.across.high) { /* the view is all black */
        memset(view, 0, (size_t)side * side * 3);
        return;
    }
    if (border == WINDOW_FIRST) pixels += drawn->geometry[0] * gap + (size_t)drawn->geometry[1] * 3;
    pixels += room.down.low * gap;
    weigh_columns(pixels, gap, room.down.high - room.down.low, &room.across, side, room.turned, room.weighed, room.rows);
    weigh_rows(room.rows, &room.down, side, view);
}
