/* AutoContrast and Equalize: a table for each channel, computed from the channel's histogram, maps its values. */
#include <string.h>

#include "operations.h"

#define PARTS 4  /* partial histograms, so that equal neighbouring pixels do not wait for each other */

static void count_values(const uint8_t *view, int pixels, uint32_t counts[3][256]) {
    uint32_t parts[PARTS][3][256];
    memset(parts, 0, sizeof parts);
    for (int each = 0; each < pixels; each++)
        for (int channel = 0; channel < 3; channel++) parts[each % PARTS][channel][view[3 * each + channel]]++;
    for (int channel = 0; channel < 3; channel++)
        for (int value = 0; value < 256; value++) {
            counts[channel][value] = 0;
            for (int part = 0; part < PARTS; part++) counts[channel][value] += parts[part][channel][value];
        }
}

static void look_up(uint8_t *view, int pixels, uint8_t tables[3][256]) {
    for (int each = 0; each < pixels; each++)
        for (int channel = 0; channel < 3; channel++) view[3 * each + channel] = tables[channel][view[3 * each + channel]];
}

void auto_contrast(uint8_t *view, int side) {
    uint32_t counts[3][256];
    uint8_t tables[3][256];
    count_values(view, side * side, counts);
    for (int channel = 0; channel < 3; channel++) {
        int low = 0, high = 255;
        while (low < 255 && !counts[channel][low]) low++;
        while (high > 0 && !counts[channel][high]) high--;
        double scale = high > low ? 255.0 / (high - low) : 1.0, offset = high > low ? -low * scale : 0.0;
        for (int value = 0; value < 256; value++) {
            int stretched = (int)(value * scale + offset);
            tables[channel][value] = (uint8_t)(stretched < 0 ? 0 : stretched > 255 ? 255 : stretched);
        }
    }
    look_up(view, side * side, tables);
}

void equalize(uint8_t *view, int side) {
    uint32_t counts[3][256], pixels = (uint32_t)side * (uint32_t)side;
    uint8_t tables[3][256];
    count_values(view, side * side, counts);
    for (int channel = 0; channel < 3; channel++) {
        int high = 255;
        while (high > 0 && !counts[channel][high]) high--;
        uint32_t step = (pixels - counts[channel][high]) / 255, below = step / 2;
        for (int value = 0; value < 256; value++) {
            uint32_t level = step ? below / step : (uint32_t)value; /* too few other values: PIL changes nothing */
            tables[channel][value] = (uint8_t)(level > 255 ? 255 : level);
            below += counts[channel][value];
        }
    }
    look_up(view, side * side, tables);
}
