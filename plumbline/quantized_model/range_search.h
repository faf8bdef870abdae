/* range_search.c includes this once per dtype: REAL, with MANTISSA bits and an exponent biased by BIAS; INTEGER is as wide.
 *
 * Codes stand for integers from low to high where m < 0, else for floating-point numbers with a mantissa of m bits, up to
 * high, the smallest normal one 2^e0.
 */

/* The sum of v (w - q)^2 over n values, n a multiple of LANES: q is the number nearest to w / s + z, less z, times s. */
INLINE REAL SQUARES(const REAL *w, const REAL *v, int64_t n, REAL s, REAL z, REAL low, REAL high, int m, int e0) {
    REAL sum[LANES] __attribute__((aligned(64))) = {0};
    if (m < 0) {
        for (int64_t k = 0; k < n; k += LANES)
            for (int64_t l = 0; l < LANES; l++) {
                REAL q = NEAREST(w[k + l] / s + z);
                q = q < low ? low : q;
                q = q > high ? high : q;
                const REAL error = (q - z) * s - w[k + l];
                sum[l] += error * error * v[k + l];
            }
    } else {
        for (int64_t k = 0; k < n; k += LANES)
            for (int64_t l = 0; l < LANES; l++) {
                const REAL x = w[k + l] / s;
                REAL magnitude = x < 0 ? -x : x, step, inverse;
                magnitude = magnitude > high ? high : magnitude;
                INTEGER e, bits;
                memcpy(&e, &magnitude, sizeof e);
                e >>= MANTISSA;
                e = e > e0 + BIAS ? e : e0 + BIAS; /* the step between numbers is 2^(e - BIAS - m) */
                bits = (e - m) << MANTISSA;
                memcpy(&step, &bits, sizeof step);
                bits = (2 * BIAS - e + m) << MANTISSA;
                memcpy(&inverse, &bits, sizeof inverse);
                const REAL q = NEAREST(magnitude * inverse) * step;
                const REAL error = (x < 0 ? -q : q) * s - w[k + l];
                sum[l] += error * error * v[k + l];
            }
    }
    for (int64_t half = LANES / 2; half; half /= 2)
        for (int64_t l = 0; l < half; l++) sum[l] += sum[l + half];
    return sum[0];
}

/* The candidate of least error of every group, the first of equals.
 *
 * values   groups x size
 * weights  periods x size; group i has those of row (first + i) modulo `periods`. NULL: all are 1
 * s, z     candidates x groups; z is NULL where the grid is symmetric
 * errors   candidates: working memory
 * best     groups: out
 */
ANY EXPORT void SEARCH(int64_t groups, int64_t size, int64_t candidates, const REAL *values, const REAL *weights,
                       int64_t first, int64_t periods, const REAL *s, const REAL *z, double low, double high, int m,
                       int e0, double *errors, int64_t *best) {
    REAL w[BLOCK] __attribute__((aligned(64))), v[BLOCK] __attribute__((aligned(64)));
    for (int64_t i = 0; i < groups; i++) {
        for (int64_t c = 0; c < candidates; c++) errors[c] = 0;
        for (int64_t k = 0; k < size; k += BLOCK) {
            const int64_t n = size - k < BLOCK ? size - k : BLOCK, padded = (n + LANES - 1) / LANES * LANES;
            for (int64_t j = 0; j < n; j++) {
                w[j] = values[i * size + k + j];
                v[j] = weights ? weights[(first + i) % periods * size + k + j] : 1;
            }
            for (int64_t j = n; j < padded; j++) w[j] = v[j] = 0; /* of no error */
            for (int64_t c = 0; c < candidates; c++)
                errors[c] += SQUARES(w, v, padded, s[c * groups + i], z ? z[c * groups + i] : 0, (REAL)low, (REAL)high,
                                     m, e0);
        }
        int64_t least = 0;
        for (int64_t c = 1; c < candidates; c++)
            if (errors[c] < errors[least]) least = c;
        best[i] = least;
    }
}
