/* The passes of kernel.c on processors with AVX2 and FMA; included there.
 *
 * Activations of either type are packed and processed as float32, token by token. The product of two bfloat16 is exact
 * in float32, its square in float64, so column sums are bit for bit those of kernel_avx512.h. */
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX2_INLINE AVX2 static inline __attribute__((always_inline))

enum { AVX2_ROWS = 6, AVX2_COLUMNS = 16 };
/* 6 rows of two vectors of 8 sums: 12 accumulators, two operands and a broadcast one fill 15 of the 16 registers. */

/* Values [at, at + n), n <= 8, as the bits of float32; zeros follow. */
AVX2_INLINE __m256i avx2_bits(const void *x, int64_t at, int64_t n, const int wide) {
    uint32_t some[8] = {0};
    if (n == 8)
        return wide ? _mm256_loadu_si256((const __m256i *)((const uint32_t *)x + at))
                    : _mm256_slli_epi32(
                          _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)((const uint16_t *)x + at))), 16);
    for (int64_t i = 0; i < n; i++) some[i] = value_bits(x, at + i, wide);
    return _mm256_loadu_si256((const __m256i *)some);
}

/* --- Hessian ---------------------------------------------------------------------------------------------------- */

/* One panel of x (tokens, width). Channels beyond the width and the token after an odd last one are zero. */
AVX2_INLINE void avx2_pack(const void *x, int64_t tokens, int64_t width, int64_t panel, float *out, const int wide) {
    int64_t first = panel * PANEL, channels = at_most(width - first, PANEL);
    for (int64_t t = 0; t < tokens; t++, out += PANEL)
        for (int64_t c = 0; c < PANEL; c += 8) {
            int64_t n = at_most(channels - c, 8);
            __m256i bits = n > 0 ? avx2_bits(x, t * width + first + c, n, wide) : _mm256_setzero_si256();
            _mm256_storeu_si256((__m256i *)(out + c), bits);
        }
    if (tokens % 2) memset(out, 0, PANEL * sizeof *out);
}

AVX2 static void avx2_pack_panel(const void *x, int64_t tokens, int64_t width, int64_t panel, float *out, int wide) {
    if (wide)
        avx2_pack(x, tokens, width, panel, out, 1);
    else
        avx2_pack(x, tokens, width, panel, out, 0);
}

/* Add weight * (products of `tokens` tokens, summed in float32) to AVX2_ROWS x AVX2_COLUMNS entries of S, of which
 * `rows` x `columns` exist. */
AVX2_INLINE void
avx2_block(double *S, int64_t width, int64_t rows, int64_t columns, const float *a, const float *b, int64_t tokens,
           double weight) {
    __m256 sum[AVX2_ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < AVX2_ROWS; r++) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int64_t t = 0; t < tokens; t++, a += PANEL, b += PANEL) {
        __m256 left = _mm256_loadu_ps(b), right = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 6
        for (int r = 0; r < AVX2_ROWS; r++) {
            __m256 ar = _mm256_broadcast_ss(a + r);
            sum[r][0] = _mm256_fmadd_ps(ar, left, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(ar, right, sum[r][1]);
        }
    }
    __m256d w = _mm256_set1_pd(weight);
#pragma GCC unroll 6
    for (int r = 0; r < AVX2_ROWS; r++) {
        if (r >= rows) break;
        double *s = S + r * width;
        if (columns == AVX2_COLUMNS) {
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++, s += 8) {
                __m256d p = _mm256_cvtps_pd(_mm256_castps256_ps128(sum[r][half]));
                __m256d q = _mm256_cvtps_pd(_mm256_extractf128_ps(sum[r][half], 1));
                _mm256_storeu_pd(s, _mm256_fmadd_pd(p, w, _mm256_loadu_pd(s)));
                _mm256_storeu_pd(s + 4, _mm256_fmadd_pd(q, w, _mm256_loadu_pd(s + 4)));
            }
        } else {
            float values[AVX2_COLUMNS];
            _mm256_storeu_ps(values, sum[r][0]);
            _mm256_storeu_ps(values + 8, sum[r][1]);
            for (int64_t c = 0; c < columns; c++) s[c] = __builtin_fma((double)values[c], weight, s[c]);
        }
    }
}

/* The tile of S whose rows are the channels of panel i and whose columns are those of panel j >= i, without blocks
 * beyond the width or wholly below the diagonal. AVX2_COLUMNS channels of a segment stay in the L1 cache while they are
 * multiplied with all rows. */
AVX2 static void avx2_tile(double *S, int64_t width, int64_t i, int64_t j, const float *left, const float *right,
                           const int64_t *starts, const int64_t *pairs, const double *weights, int64_t segments) {
    for (int64_t segment = 0; segment < segments; segment++) {
        const float *a = left + 2 * starts[segment] * PANEL, *b = right + 2 * starts[segment] * PANEL;
        for (int64_t c = 0; c < PANEL; c += AVX2_COLUMNS)
            for (int64_t r = 0; r < PANEL; r += AVX2_ROWS) {
                int64_t row = i * PANEL + r, column = j * PANEL + c;
                int64_t rows = at_most(width - row, AVX2_ROWS), columns = at_most(width - column, AVX2_COLUMNS);
                if (rows <= 0 || columns <= 0 || row >= column + AVX2_COLUMNS) continue;
                avx2_block(S + row * width + column, width, rows, columns, a + r, b + c, 2 * pairs[segment],
                           weights[segment]);
            }
    }
}

/* --- Columns ---------------------------------------------------------------------------------------------------- */

/* Sums of 8 channels in float64, in the order of the tokens. */
typedef struct {
    __m256d sum[2], sum_abs[2], sum_sq[2];
} Avx2Sums;

/* The bits of 8 values as integers in the order of the values, or back. */
AVX2_INLINE __m256i avx2_turned(__m256i bits) {
    return _mm256_xor_si256(bits, _mm256_srli_epi32(_mm256_srai_epi32(bits, 31), 1));
}

/* Tokens [start, stop) of the 8 channels from `channel` on, of which n exist; writes the buckets of the counted
 * tokens to `number` and returns how many there are. */
AVX2_INLINE int64_t avx2_batch(const void *x, int64_t width, int64_t channel, int64_t n, int64_t start, int64_t stop,
                               Avx2Sums *sums, __m256i *least, __m256i *most, int counting, int bits,
                               const uint8_t *counted, uint16_t (*number)[8], const int wide) {
    const int lowest = LOWEST << bits, window = OCTAVES << bits;
    const __m128i drop = _mm_cvtsi32_si128(7 - bits);
    const __m256d magnitude = _mm256_castsi256_pd(_mm256_set1_epi64x(INT64_MAX));
    Avx2Sums s = *sums;
    __m256i low = *least, high = *most;
    int64_t filled = 0;
    for (int64_t t = start; t < stop; t++) {
        __m256i value = avx2_bits(x, t * width + channel, n, wide), turned = avx2_turned(value);
        __m256 v = _mm256_castsi256_ps(value);
        __m256d half[2] = {_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
        for (int i = 0; i < 2; i++) {
            s.sum[i] = _mm256_add_pd(s.sum[i], half[i]);
            s.sum_abs[i] = _mm256_add_pd(s.sum_abs[i], _mm256_and_pd(half[i], magnitude));
            s.sum_sq[i] = _mm256_fmadd_pd(half[i], half[i], s.sum_sq[i]);
        }
        low = _mm256_min_epi32(low, turned);
        high = _mm256_max_epi32(high, turned);
        if (!counting || (counted != NULL && !counted[t])) continue;
        turned = _mm256_srai_epi32(turned, 16);
        __m128i code = _mm_packs_epi32(_mm256_castsi256_si128(turned), _mm256_extracti128_si256(turned, 1));
        code = _mm_sra_epi16(code, drop);
        __m128i middle = _mm_max_epi16(_mm_set1_epi16((short)-lowest), code);
        middle = _mm_min_epi16(_mm_set1_epi16((short)(lowest - 1)), middle);
        code = _mm_sub_epi16(code, middle);
        code = _mm_max_epi16(code, _mm_set1_epi16((short)(-window - 1)));
        code = _mm_min_epi16(code, _mm_set1_epi16((short)(window + 1)));
        code = _mm_add_epi16(code, _mm_set1_epi16((short)(window + 1)));
        _mm_storeu_si128((__m128i *)number[filled++], code);
    }
    *sums = s, *least = low, *most = high;
    return filled;
}

/* Channels [channel, channel + STRIP) of x, 8 at a time: a batch of rows that fits into the L1 cache is read for all
 * channels before the next batch. */
AVX2_INLINE void avx2_columns(const void *x, int64_t tokens, int64_t width, int64_t channel, float *low, float *high,
                              double *sums, uint32_t *counts, int bits, const uint8_t *counted, const int wide) {
    enum { PARTS = STRIP / 8 };
    const int64_t buckets = 2 * ((int64_t)OCTAVES << bits) + 3;
    Avx2Sums s[PARTS];
    __m256i least[PARTS], most[PARTS];
    memset(s, 0, sizeof s);
    for (int part = 0; part < PARTS; part++) {
        least[part] = _mm256_set1_epi32(INT32_MAX);
        most[part] = _mm256_set1_epi32(INT32_MIN);
    }
    uint16_t number[BATCH][8];
    for (int64_t start = 0; start < tokens; start += BATCH)
        for (int part = 0; part < PARTS; part++) {
            int64_t at = channel + 8 * part, n = at_most(width - at, 8), stop = at_most(start + BATCH, tokens);
            if (n <= 0) break;
            int64_t filled = avx2_batch(x, width, at, n, start, stop, &s[part], &least[part], &most[part],
                                        counts != NULL, bits, counted, number, wide);
            for (int64_t c = 0; c < n && filled; c++) { /* its counts stay in the L1 cache */
                uint32_t *count = counts + (at + c) * buckets;
                for (int64_t i = 0; i < filled; i++) count[number[i][c]]++;
            }
        }
    for (int part = 0; part < PARTS; part++) {
        int64_t at = channel + 8 * part, n = at_most(width - at, 8);
        if (n <= 0) break;
        double values[3][8];
        float extremes[2][8];
        for (int i = 0; i < 2; i++) {
            _mm256_storeu_pd(values[0] + 4 * i, s[part].sum[i]);
            _mm256_storeu_pd(values[1] + 4 * i, s[part].sum_abs[i]);
            _mm256_storeu_pd(values[2] + 4 * i, s[part].sum_sq[i]);
        }
        _mm256_storeu_si256((__m256i *)extremes[0], avx2_turned(least[part]));
        _mm256_storeu_si256((__m256i *)extremes[1], avx2_turned(most[part]));
        for (int64_t c = 0; c < n; c++) {
            for (int which = 0; which < 3; which++) sums[which * width + at + c] = values[which][c];
            low[at + c] = extremes[0][c] + 0.0f; /* no negative zero, as in kernel.py */
            high[at + c] = extremes[1][c] + 0.0f;
        }
    }
}

AVX2 static void avx2_strip(const void *x, int64_t tokens, int64_t width, int64_t channel, float *low, float *high,
                            double *sums, uint32_t *counts, int bits, const uint8_t *counted, int wide) {
    if (wide)
        avx2_columns(x, tokens, width, channel, low, high, sums, counts, bits, counted, 1);
    else
        avx2_columns(x, tokens, width, channel, low, high, sums, counts, bits, counted, 0);
}
