/* Operations that map each value by itself, whatever its neighbours are. */
#include "operations.h"

SIMD void change_values(uint8_t *view, int side, int threshold, int mask, int addend) {
    size_t values = (size_t)side * side * 3;
    int lowest = threshold < 256 ? threshold : 255;
    uint8_t inverts = threshold < 256 ? 255 : 0;
    for (size_t each = 0; each < values; each++) {
        uint8_t value = view[each], bright = value >= lowest ? inverts : 0, dark = value < 128 ? (uint8_t)addend : 0;
        view[each] = (uint8_t)(((value & mask) ^ bright) + dark); /* at most 127 + 110: no overflow */
    }
}
