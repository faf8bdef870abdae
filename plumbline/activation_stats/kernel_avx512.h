/* The passes of kernel.c on processors with AVX512-BF16; included there.
 *
 * Activations are packed in pairs of tokens, the operand of VDPBF16PS: one 32-bit word per channel and pair. */
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

enum { ROWS = 8, LANES = 16, VECTORS = PANEL / LANES };
/* A block of ROWS x PANEL sums is ROWS x VECTORS = 24 accumulators; with the 3 + 1 operands they fill 28 of the 32
 * registers, and 24 independent sums hide the instruction's latency. */

/* A mask of the first n of `lanes` lanes; n may be negative or exceed `lanes`. */
static inline uint32_t first_bits(int64_t n, int lanes) {
    return n <= 0 ? 0 : (uint32_t)((1ull << at_most(n, lanes)) - 1);
}

/* --- Hessian ---------------------------------------------------------------------------------------------------- */

/* One panel of x (tokens, width): 32 bits hold a channel's values at two tokens, the operand of VDPBF16PS. Channels
 * beyond the width and the token after an odd last one are zero. */
AVX512 static void avx512_pack_panel(const uint16_t *x, int64_t tokens, int64_t width, int64_t panel, uint32_t *out) {
    for (int64_t t = 0; t < tokens; t += 2, out += PANEL)
        for (int v = 0; v < VECTORS; v++) {
            int64_t channel = panel * PANEL + v * LANES;
            __mmask16 mask = first_bits(width - channel, LANES);
            const uint16_t *row = x + t * width + channel;
            __m512i first = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row));
            __m512i second = _mm512_setzero_si512();
            if (t + 1 < tokens) second = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row + width));
            _mm512_storeu_si512(out + v * LANES, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
        }
}

/* Add to ROWS x PANEL entries of S segment by segment: float32 sums within a segment, added in float64. Only vectors
 * [from, to) of the panel: they are constants so that the sums stay in registers. */
AVX512 static inline __attribute__((always_inline)) void
avx512_vectors(const int from, const int to, double *S, int64_t width, int64_t rows, int64_t columns,
               const uint32_t *left, const uint32_t *right, const int64_t *starts, const int64_t *pairs,
               const double *weights, int64_t segments) {
    for (int64_t r = 0; r < rows; r++) /* prefetch S while the first segment is multiplied */
        for (int64_t c = from * LANES; c < columns; c += 8) _mm_prefetch((const char *)(S + r * width + c), _MM_HINT_T1);
    for (int64_t segment = 0; segment < segments; segment++) {
        const uint32_t *a = left + starts[segment] * PANEL, *b = right + starts[segment] * PANEL;
        __m512 sum[ROWS][VECTORS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
            for (int v = from; v < to; v++) sum[r][v] = _mm512_setzero_ps();
        for (int64_t pair = 0; pair < pairs[segment]; pair++, a += PANEL, b += PANEL) {
            __m512bh bv[VECTORS];
#pragma GCC unroll 3
            for (int v = from; v < to; v++) bv[v] = (__m512bh)_mm512_loadu_si512(b + v * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                __m512bh ar = (__m512bh)_mm512_set1_epi32((int)a[r]);
#pragma GCC unroll 3
                for (int v = from; v < to; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], ar, bv[v]);
            }
        }
        __m512d weight = _mm512_set1_pd(weights[segment]);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            if (r >= rows) break;
#pragma GCC unroll 3
            for (int v = from; v < to; v++) {
                double *s = S + r * width + v * LANES;
                __mmask8 low = first_bits(columns - v * LANES, 8), high = first_bits(columns - v * LANES - 8, 8);
                __m512d p = _mm512_cvtps_pd(_mm512_castps512_ps256(sum[r][v]));
                __m512d q = _mm512_cvtps_pd(_mm512_extractf32x8_ps(sum[r][v], 1));
                _mm512_mask_storeu_pd(s, low, _mm512_fmadd_pd(p, weight, _mm512_maskz_loadu_pd(low, s)));
                _mm512_mask_storeu_pd(s + 8, high, _mm512_fmadd_pd(q, weight, _mm512_maskz_loadu_pd(high, s + 8)));
            }
        }
    }
}

/* Rows [row, row + ROWS) and the columns of one panel from `column` on, without vectors beyond the width or wholly
 * below the diagonal. */
AVX512 static void avx512_block(double *S, int64_t width, int64_t row, int64_t column, const uint32_t *left,
                                const uint32_t *right, const int64_t *starts, const int64_t *pairs,
                                const double *weights, int64_t segments) {
    int64_t rows = at_most(width - row, ROWS), columns = at_most(width - column, PANEL);
    int64_t from = row > column ? (row - column) / LANES : 0, to = (columns + LANES - 1) / LANES;
    if (rows <= 0) return;
    double *s = S + row * width + column;
#define CASE(f, t) \
    case 4 * f + t: \
        avx512_vectors(f, t, s, width, rows, columns, left, right, starts, pairs, weights, segments); \
        break;
    switch (4 * from + to) { CASE(0, 1) CASE(0, 2) CASE(0, 3) CASE(1, 2) CASE(1, 3) CASE(2, 3) }
#undef CASE
}

/* The tile of S whose rows are the channels of panel i and whose columns are those of panel j >= i. */
static void avx512_tile(double *S, int64_t width, int64_t i, int64_t j, const uint32_t *left, const uint32_t *right,
                        const int64_t *starts, const int64_t *pairs, const double *weights, int64_t segments) {
    for (int64_t r = 0; r < PANEL; r += ROWS)
        avx512_block(S, width, i * PANEL + r, j * PANEL, left + r, right, starts, pairs, weights, segments);
}

/* --- Columns ---------------------------------------------------------------------------------------------------- */

/* Sums of 16 channels in float64, in the order of the tokens. */
typedef struct {
    __m512d sum[2], sum_abs[2], sum_sq[2];
} Sums;

AVX512 static inline __attribute__((always_inline)) void add16(Sums *s, __m512 x) {
    __m512d half[2] = {_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))};
    for (int i = 0; i < 2; i++) {
        s->sum[i] = _mm512_add_pd(s->sum[i], half[i]);
        s->sum_abs[i] = _mm512_add_pd(s->sum_abs[i], _mm512_abs_pd(half[i]));
        s->sum_sq[i] = _mm512_fmadd_pd(half[i], half[i], s->sum_sq[i]);
    }
}

AVX512 static void store16(double *out, int64_t n, const __m512d *values) {
    _mm512_mask_storeu_pd(out, first_bits(n, 8), values[0]);
    _mm512_mask_storeu_pd(out + 8, first_bits(n - 8, 8), values[1]);
}

/* Channels [channel, channel + STRIP) of x. The bits of a bfloat16, inverted for negative values, are integers in
 * the order of the values. They give extremes and buckets (NaNs end up beyond the infinities). */
AVX512 static void avx512_strip(const uint16_t *x, int64_t tokens, int64_t width, int64_t channel, float *low,
                                float *high, double *sums, uint32_t *counts, int bits, const uint8_t *counted) {
    int64_t n = at_most(width - channel, STRIP), n_low = at_most(n, 16), n_high = n - n_low;
    __mmask32 mask = first_bits(n, STRIP);
    Sums s[2];
    memset(s, 0, sizeof s);
    __m512i least = _mm512_set1_epi16(INT16_MAX), most = _mm512_set1_epi16(INT16_MIN);
    const int lowest = LOWEST << bits, window = OCTAVES << bits;
    const int64_t buckets = 2 * window + 3;
    const __m128i drop = _mm_cvtsi32_si128(7 - bits);
    uint16_t number[BATCH][STRIP] __attribute__((aligned(64)));
    for (int64_t start = 0; start < tokens; start += BATCH) {
        int64_t stop = at_most(start + BATCH, tokens), filled = 0;
        for (int64_t t = start; t < stop; t++) {
            const uint16_t *row = x + t * width + channel;
            _mm_prefetch((const char *)(row + 16 * width), _MM_HINT_T0);
            __m512i v = _mm512_maskz_loadu_epi16(mask, row);
            add16(&s[0], (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(v)), 16));
            add16(&s[1], (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(v, 1)), 16));
            __m512i code = _mm512_xor_si512(v, _mm512_srli_epi16(_mm512_srai_epi16(v, 15), 1));
            least = _mm512_min_epi16(least, code);
            most = _mm512_max_epi16(most, code);
            if (counts == NULL || (counted != NULL && !counted[t])) continue;
            code = _mm512_sra_epi16(code, drop);
            __m512i middle = _mm512_max_epi16(_mm512_set1_epi16((short)-lowest), code);
            middle = _mm512_min_epi16(_mm512_set1_epi16((short)(lowest - 1)), middle);
            code = _mm512_sub_epi16(code, middle);
            code = _mm512_max_epi16(code, _mm512_set1_epi16((short)(-window - 1)));
            code = _mm512_min_epi16(code, _mm512_set1_epi16((short)(window + 1)));
            code = _mm512_add_epi16(code, _mm512_set1_epi16((short)(window + 1)));
            _mm512_store_si512(number[filled++], code);
        }
        for (int64_t c = 0; c < n && filled; c++) { /* channel by channel: its counts stay in the L1 cache */
            uint32_t *count = counts + (channel + c) * buckets;
            for (int64_t i = 0; i < filled; i++) count[number[i][c]]++;
        }
    }
    for (int half = 0; half < 2; half++) {
        int64_t m = half ? n_high : n_low, at = channel + 16 * half;
        store16(sums + at, m, s[half].sum);
        store16(sums + width + at, m, s[half].sum_abs);
        store16(sums + 2 * width + at, m, s[half].sum_sq);
        __m512i codes[2] = {least, most};
        for (int i = 0; i < 2; i++) {
            __m256i code = half ? _mm512_extracti64x4_epi64(codes[i], 1) : _mm512_castsi512_si256(codes[i]);
            code = _mm256_xor_si256(code, _mm256_srli_epi16(_mm256_srai_epi16(code, 15), 1));
            __m512 value = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(code), 16);
            value = _mm512_add_ps(value, _mm512_setzero_ps()); /* no negative zero, as in kernel.py */
            _mm512_mask_storeu_ps((i ? high : low) + at, first_bits(m, LANES), value);
        }
    }
}
