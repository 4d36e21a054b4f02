/* The inner loop of weigh.h, for vectors of any processor, and with AVX2's 16-bit multiplications, which add pairs.
 *
 * A weight has 24 bits with its sign. The sums over its upper 13 bits and over its lower 11 bits are computed
 * separately, each exactly in 32 bits, and combined at the end. That takes half the instructions of 32-bit
 * multiplications, and gives the same sum.
 */
#include <string.h>

#include "weigh.h"

#define LOWER 11 /* number of bits in a weight's lower part */
#define LANES 8

typedef uint8_t bytes8 __attribute__((vector_size(8)));
typedef uint16_t shorts8 __attribute__((vector_size(16)));
typedef int32_t ints8 __attribute__((vector_size(32)));

void part_weights(const int32_t *weight, int count, int32_t *parts) {
    for (int each = 0; each < count; each += 2) {
        int32_t first = weight[each], second = each + 1 < count ? weight[each + 1] : 0, mask = (1 << LOWER) - 1;
        parts[each] = ((first >> LOWER) & 0xffff) | (int32_t)((uint32_t)(second >> LOWER) << 16);
        parts[each + 1] = (first & mask) | (second & mask) << 16;
    }
}

INLINE void clip8(ints8 sum, uint8_t *to) {
    sum >>= BITS;
    sum &= ~(sum >> 31);      /* sum >> 31 has all bits set if the sum is below 0 */
    sum |= (255 - sum) >> 31; /* this has all bits set if the sum is above 255 */
    bytes8 values = __builtin_convertvector(__builtin_convertvector(sum & 255, shorts8), bytes8);
    memcpy(to, &values, sizeof values);
}

INLINE ints8 widen8(const uint16_t *from) {
    shorts8 values;
    memcpy(&values, from, sizeof values);
    return __builtin_convertvector(values, ints8);
}

static void weigh_plainly(
    const uint16_t *from, size_t gap, const int32_t *weight, const int32_t *parts, int count, uint8_t *to
) {
    ints8 sum[GROUP / LANES];
    (void)parts;
    for (int part = 0; part < GROUP / LANES; part++) sum[part] = (ints8){0} + (1 << (BITS - 1));
    for (int tap = 0; tap < count; tap++, from += gap)
        for (int part = 0; part < GROUP / LANES; part++) sum[part] += widen8(from + part * LANES) * weight[tap];
    for (int part = 0; part < GROUP / LANES; part++) clip8(sum[part], to + part * LANES);
}

#if defined(__x86_64__) && !defined(DEIT_FAST_PLAIN)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

/* (upper * 2^LOWER + lower), rounded to a 32-bit value. */
AVX2 static inline __m256i join(__m256i upper, __m256i lower) {
    __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(upper, LOWER), lower);
    return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(1 << (BITS - 1))), BITS);
}

AVX2 static void weigh_in_pairs(
    const uint16_t *from, size_t gap, const int32_t *weight, const int32_t *parts, int count, uint8_t *to
) {
    (void)weight;
    for (int at = 0; at < GROUP; at += 16) {
        __m256i upper[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        __m256i lower[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        const uint16_t *row = from + at;
        for (int tap = 0; tap < count; tap += 2, row += 2 * gap) {
            __m256i first = _mm256_loadu_si256((const __m256i *)row);
            __m256i second = _mm256_loadu_si256((const __m256i *)(row + gap));
            __m256i pairs[2] = {_mm256_unpacklo_epi16(first, second), _mm256_unpackhi_epi16(first, second)};
            __m256i above = _mm256_set1_epi32(parts[tap]), below = _mm256_set1_epi32(parts[tap + 1]);
            for (int half = 0; half < 2; half++) {
                upper[half] = _mm256_add_epi32(upper[half], _mm256_madd_epi16(pairs[half], above));
                lower[half] = _mm256_add_epi32(lower[half], _mm256_madd_epi16(pairs[half], below));
            }
        }
        /* Packing saturates like clip, and restores the order that unpacking changed. */
        __m256i values = _mm256_packs_epi32(join(upper[0], lower[0]), join(upper[1], lower[1]));
        __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
        _mm_storeu_si128((__m128i *)(to + at), bytes);
    }
}
#endif

weigh_rows_of_group *choose_weigh(void) {
#if defined(__x86_64__) && !defined(DEIT_FAST_PLAIN)
    if (__builtin_cpu_supports("avx2")) return weigh_in_pairs;
#endif
    return weigh_plainly;
}
