/* Calls what kernel.c exports at edge shapes, with each level of instructions, against plain loops. */
#include "checks.h"

int plumbline_version(void);
int plumbline_panel(void);
int plumbline_words(int level);
int plumbline_level(void);
void plumbline_pack(const void *x, int64_t tokens, int64_t width, uint32_t *panels, int64_t capacity, int64_t start,
                    int threads, int level, int wide);
void plumbline_hessian(double *S, int64_t width, const uint32_t *panels, int64_t capacity, const int64_t *starts,
                       const int64_t *pairs, const double *weights, int64_t segments, int threads, int level);
void plumbline_columns(const void *x, int64_t tokens, int64_t width, float *low, float *high, double *sums,
                       uint32_t *counts, int bits, const uint8_t *counted, int threads, int level, int wide);
void plumbline_largest(const void *x, int64_t tokens, int64_t width, const float *peaks, const int64_t *positions,
                       int64_t k, float *values, int32_t *places, int32_t *channels, int wide);
void plumbline_mirror(double *S, int64_t width, int threads);

enum { WITH_AVX2 = 1, WITH_AVX512 = 2, THREADS = 2, SEGMENT_PAIRS = 128, OCTAVES = 40 };
static const double ROUNDING = 256 * 0x1p-24; /* of a segment of 256 tokens, summed in float32, at worst */
static const double SUBNORMAL = 1e-31; /* a product of the largest value and a subnormal one, which counts as zero */

/* Activations (tokens, width): mostly moderate, some zero, huge or subnormal. */
static void *activations(int64_t tokens, int64_t width, int wide) {
    void *x = buffer(tokens * width, wide ? sizeof(float) : sizeof(uint16_t));
    for (int64_t i = 0; i < tokens * width; i++) {
        const double strange[] = {0, -0.0, 3e7, -3e7, 1e-39, -1e-9};
        double v = below(8) ? value() : strange[below(COUNT(strange))];
        if (wide)
            ((float *)x)[i] = (float)v;
        else
            ((uint16_t *)x)[i] = to_bfloat16(v);
    }
    return x;
}

static double at(const void *x, int64_t i, int wide) {
    return wide ? ((const float *)x)[i] : from_bfloat16(((const uint16_t *)x)[i]);
}

/* Two samples one after the other in the panels, as segments. */
static void hessian(int64_t tokens, int64_t width, int level, int wide) {
    int64_t lengths[] = {tokens, tokens / 2 + 1}, room = (lengths[0] + 1) / 2 + (lengths[1] + 1) / 2;
    int64_t panels = (width + plumbline_panel() - 1) / plumbline_panel();
    uint32_t *packed = buffer(panels * room * plumbline_panel() * plumbline_words(level), sizeof *packed);
    int64_t most = room / SEGMENT_PAIRS + 2, segments = 0, filled = 0;
    int64_t *starts = buffer(most, sizeof *starts), *pairs = buffer(most, sizeof *pairs);
    double *weights = buffer(most, sizeof *weights), *S = buffer(width * width, sizeof *S);
    double *expected = buffer(width * width, sizeof *S), *scale = buffer(width, sizeof *scale);
    for (int part = 0; part < 2; part++) {
        void *x = activations(lengths[part], width, wide);
        int64_t count = (lengths[part] + 1) / 2;
        double weight = part ? 0.37 : 1;
        plumbline_pack(x, lengths[part], width, packed, room, filled, THREADS, level, wide);
        for (int64_t start = 0; start < count; start += SEGMENT_PAIRS, segments++) {
            CHECK(segments < most);
            starts[segments] = filled + start;
            pairs[segments] = count - start < SEGMENT_PAIRS ? count - start : SEGMENT_PAIRS;
            weights[segments] = weight;
        }
        filled += count;
        for (int64_t t = 0; t < lengths[part]; t++)
            for (int64_t i = 0; i < width; i++)
                for (int64_t j = i; j < width; j++)
                    expected[i * width + j] += weight * at(x, t * width + i, wide) * at(x, t * width + j, wide);
    }
    CHECK(filled == room);
    plumbline_hessian(S, width, packed, room, starts, pairs, weights, segments, THREADS, level);
    for (int64_t i = 0; i < width; i++) scale[i] = sqrt(expected[i * width + i]);
    for (int64_t i = 0; i < width; i++)
        for (int64_t j = i; j < width; j++)
            CHECK(is_near(S[i * width + j], expected[i * width + j], ROUNDING * scale[i] * scale[j] + SUBNORMAL));
    plumbline_mirror(S, width, THREADS);
    for (int64_t i = 0; i < width; i++)
        for (int64_t j = 0; j < width; j++) CHECK(S[i * width + j] == S[j * width + i]);
    release();
}

static void columns(int64_t tokens, int64_t width, int level, int wide, int counting, int share, int bits) {
    int64_t buckets = 2 * ((int64_t)OCTAVES << bits) + 3, marked = 0;
    void *x = activations(tokens, width, wide);
    float *low = buffer(width, sizeof *low), *high = buffer(width, sizeof *high);
    double *sums = buffer(3 * width, sizeof *sums);
    uint32_t *counts = counting ? buffer(width * buckets, sizeof *counts) : NULL;
    uint8_t *counted = share ? buffer(tokens, 1) : NULL;
    for (int64_t t = 0; t < tokens; t++) {
        if (counted) counted[t] = below(3) == 0;
        marked += !counted || counted[t];
    }
    plumbline_columns(x, tokens, width, low, high, sums, counts, bits, counted, THREADS, level, wide);
    for (int64_t c = 0; c < width && tokens; c++) {
        double least = INFINITY, most = -INFINITY, sum[3] = {0, 0, 0};
        for (int64_t t = 0; t < tokens; t++) {
            double v = at(x, t * width + c, wide);
            least = fmin(least, v), most = fmax(most, v);
            sum[0] += v, sum[1] += fabs(v), sum[2] += v * v;
        }
        CHECK(low[c] == least && high[c] == most);
        for (int i = 0; i < 3; i++) CHECK(is_near(sums[i * width + c], sum[i], 1e-12 * sum[i ? i : 1]));
        int64_t total = 0;
        for (int64_t b = 0; counts && b < buckets; b++) total += counts[c * buckets + b];
        CHECK(!counts || total == marked);
    }
    release();
}

static void largest(int64_t tokens, int64_t width, int64_t k, int wide) {
    void *x = activations(tokens, width, wide);
    float *peaks = buffer(width, sizeof *peaks), *values = buffer(k, sizeof *values);
    int64_t *positions = buffer(tokens, sizeof *positions);
    int32_t *places = buffer(k, sizeof *places), *channels = buffer(k, sizeof *channels);
    float peak = 0;
    for (int64_t t = 0; t < tokens; t++) positions[t] = tokens - t;
    for (int64_t i = 0; i < tokens * width; i++) {
        peaks[i % width] = fmaxf(peaks[i % width], fabsf((float)at(x, i, wide)));
        peak = fmaxf(peak, peaks[i % width]);
    }
    for (int64_t i = 0; i < k; i++) places[i] = channels[i] = -1;
    plumbline_largest(x, tokens, width, peaks, positions, k, values, places, channels, wide);
    int64_t there = k < tokens * width ? k : tokens * width;
    CHECK(there == 0 || fabsf(values[0]) == peak);
    for (int64_t i = 0; i < k; i++) {
        CHECK((places[i] >= 0) == (i < there));
        CHECK(i == 0 || fabsf(values[i]) <= fabsf(values[i - 1]));
        if (i < there) CHECK((float)at(x, (tokens - places[i]) * width + channels[i], wide) == values[i]);
    }
    release();
}

int main(void) {
    const int64_t tokens[] = {1, 2, 31, 255, 257}, widths[] = {1, 7, 17, 31, 32, 33, 48, 49, 97};
    CHECK(plumbline_version() > 0);
    for (kind = 0; kind < KINDS; kind++)
        for (int64_t w = 0; w < COUNT(widths); w++)
            for (int64_t t = -1; t < COUNT(tokens); t++) {
                int64_t n = t < 0 ? 0 : tokens[t], width = widths[w];
                for (int wide = 0; wide < 2; wide++) {
                    for (int level = WITH_AVX2; level <= plumbline_level(); level++) {
                        if (wide && level == WITH_AVX512) continue; /* it reads bfloat16 alone */
                        if (n) hessian(n, width, level, wide);
                        columns(n, width, level, wide, 0, 0, 4);
                        columns(n, width, level, wide, 1, (int)(n % 2), (int)(w % 8));
                    }
                    largest(n, width, 1, wide);
                    largest(n, width, width, wide);
                    largest(n, width, width + 5, wide);
                }
            }
    return 0;
}
