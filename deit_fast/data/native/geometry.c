#include "operations.h"
void warp(uint8_t *view, int side, const float *matrix, void *scratch) { (void)view, (void)side, (void)matrix, (void)scratch; }
size_t warp_scratch(int side) { return (size_t)side; }
