/* Two passes over activations that PyTorch has no CPU operator for; kernel.py calls them.
 *
 * plumbline_hessian   S += X^T X, upper triangle only. PyTorch rounds a bfloat16 product to 8 bits, and
 *                     widening first halves its speed. Here products are summed in float32, segments in float64.
 * plumbline_columns   minimum, maximum, sums and histogram of every channel while its values are in a register.
 *
 * Plain C: no Python or PyTorch headers, no state. Instructions beyond the baseline are in functions of their own
 * (`target`), which run only at a level that plumbline_level() allows. Activations x are bfloat16, or float32 where
 * `wide`, which WITH_AVX512 does not support. With OpenMP, threads divide tiles and channels among them, never a sum:
 * results do not depend on the number of threads.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VERSION 3 /* of this interface; kernel.py refuses any other */
#define EXPORT __attribute__((visibility("default")))

enum { NEITHER, WITH_AVX2, WITH_AVX512 }; /* levels */

enum { PANEL = 48, STRIP = 32, BATCH = 256 };
/* A panel is PANEL channels of packed activations, a strip STRIP unpacked channels, read BATCH tokens at a time. */

enum { LOWEST = 127 - 20, OCTAVES = 40 }; /* see histogram.py */

EXPORT int plumbline_version(void) { return VERSION; }

EXPORT int plumbline_panel(void) { return PANEL; }

/* Number of 32-bit words per channel and packed pair of tokens. */
EXPORT int plumbline_words(int level) { return level == WITH_AVX512 ? 1 : 2; }

/* The bits of the value at `at`, as float32. */
static inline uint32_t value_bits(const void *x, int64_t at, int wide) {
    return wide ? ((const uint32_t *)x)[at] : (uint32_t)((const uint16_t *)x)[at] << 16;
}

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_FAST 1
#include <immintrin.h>

static inline int64_t at_most(int64_t value, int64_t most) { return value < most ? value : most; }

#include "kernel_avx2.h"
#include "kernel_avx512.h"
#else
#define HAVE_FAST 0
#endif

/* The highest level that this processor supports: 0 none, 1 AVX2 and FMA, 2 AVX512-BF16. */
EXPORT int plumbline_level(void) {
#if HAVE_FAST
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16"))
        return WITH_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return WITH_AVX2;
#endif
    return NEITHER;
}

/* --- What kernel.py calls --------------------------------------------------------------------------------------- */

/* Pack x (tokens, width) into `panels` from pair number `start` on. A panel has room for `capacity`
 * pairs of tokens: panels[panel][pair][PANEL * plumbline_words(level)]. */
EXPORT void plumbline_pack(const void *x, int64_t tokens, int64_t width, uint32_t *panels, int64_t capacity,
                           int64_t start, int threads, int level, int wide) {
#if HAVE_FAST
    int64_t words = plumbline_words(level) * PANEL;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t panel = 0; panel < (width + PANEL - 1) / PANEL; panel++) {
        uint32_t *out = panels + (panel * capacity + start) * words;
        if (level == WITH_AVX512)
            avx512_pack_panel(x, tokens, width, panel, out);
        else
            avx2_pack_panel(x, tokens, width, panel, (float *)out, wide);
    }
#endif
}

/* Add to the upper triangle of S (width, width) the products of packed segments, in their order. Entries below
 * the diagonal are undefined afterwards. Segment i is pairs [starts[i], starts[i] + pairs[i]), its product times
 * weights[i]. */
EXPORT void plumbline_hessian(double *S, int64_t width, const uint32_t *panels, int64_t capacity,
                              const int64_t *starts, const int64_t *pairs, const double *weights, int64_t segments,
                              int threads, int level) {
#if HAVE_FAST
    int64_t words = capacity * plumbline_words(level) * PANEL, n = (width + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(dynamic, 2) num_threads(threads)
    for (int64_t tile = n * (n + 1) / 2 - 1; tile >= 0; tile--) {
        int64_t j = 0;
        while ((j + 1) * (j + 2) / 2 <= tile) j++; /* numbered down the columns: (0,0) (0,1) (1,1) (0,2) ... */
        int64_t i = tile - j * (j + 1) / 2;
        const uint32_t *left = panels + i * words, *right = panels + j * words;
        if (level == WITH_AVX512)
            avx512_tile(S, width, i, j, left, right, starts, pairs, weights, segments);
        else
            avx2_tile(S, width, i, j, (const float *)left, (const float *)right, starts, pairs, weights, segments);
    }
#endif
}

/* Write for x (tokens, width): low, high (width); sums (3, width) of x, |x|, x^2. Unless counts (width, buckets) is
 * NULL, add to it the values of the tokens that `counted` marks (NULL: all). */
EXPORT void plumbline_columns(const void *x, int64_t tokens, int64_t width, float *low, float *high, double *sums,
                              uint32_t *counts, int bits, const uint8_t *counted, int threads, int level, int wide) {
#if HAVE_FAST
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t channel = 0; channel < width; channel += STRIP)
        if (level == WITH_AVX512)
            avx512_strip(x, tokens, width, channel, low, high, sums, counts, bits, counted);
        else
            avx2_strip(x, tokens, width, channel, low, high, sums, counts, bits, counted, wide);
#endif
}

/* Merge the largest magnitudes of x (tokens, width) into k places, largest first, ties by position, then channel;
 * position -1 marks an empty place. `peaks` (width): the largest magnitude of every channel. */
EXPORT void plumbline_largest(const void *x, int64_t tokens, int64_t width, const float *peaks,
                              const int64_t *positions, int64_t k, float *values, int32_t *places, int32_t *channels,
                              int wide) {
    /* At least k values reach the k-th highest peak, so no channel below it holds one of the k largest. */
    float floor = -1.0f;
    if (k <= width) {
        float highest[k];
        int64_t n = 0;
        for (int64_t c = 0; c < width; c++) {
            if (n == k && !(peaks[c] > highest[k - 1])) continue;
            int64_t at = n < k ? n++ : k - 1;
            for (; at > 0 && highest[at - 1] < peaks[c]; at--) highest[at] = highest[at - 1];
            highest[at] = peaks[c];
        }
        floor = highest[k - 1];
    }
    for (int64_t c = 0; c < width; c++) {
        if (peaks[c] < floor) continue;
        for (int64_t t = 0; t < tokens; t++) {
            uint32_t bits = value_bits(x, t * width + c, wide);
            float value, last = values[k - 1] < 0 ? -values[k - 1] : values[k - 1];
            memcpy(&value, &bits, sizeof value);
            float magnitude = value < 0 ? -value : value;
            if (places[k - 1] >= 0 && magnitude < last) continue;
            int64_t at = k;
            for (; at > 0; at--) { /* move down the places that rank behind it */
                float other = values[at - 1] < 0 ? -values[at - 1] : values[at - 1];
                int ahead = places[at - 1] < 0 || magnitude > other;
                if (!ahead && magnitude == other)
                    ahead = positions[t] < places[at - 1] || (positions[t] == places[at - 1] && c < channels[at - 1]);
                if (!ahead) break;
                if (at < k) values[at] = values[at - 1], places[at] = places[at - 1], channels[at] = channels[at - 1];
            }
            if (at < k) values[at] = value, places[at] = (int32_t)positions[t], channels[at] = (int32_t)c;
        }
    }
}

/* Copy the upper triangle of S (width, width) over the lower one, in tiles that fit into a cache. */
EXPORT void plumbline_mirror(double *S, int64_t width, int threads) {
    enum { TILE = 32 };
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
    for (int64_t top = 0; top < width; top += TILE)
        for (int64_t left = 0; left <= top; left += TILE)
            for (int64_t r = top; r < width && r < top + TILE; r++)
                for (int64_t c = left; c < r && c < left + TILE; c++) S[r * width + c] = S[c * width + r];
}
