/* The inner loops of GPTQ, in float64; solver.py calls them.
 *
 * plumbline_solver_columns  Solves the columns of a leaf one by one. PyTorch takes a dozen passes over memory per column;
 *                           here a strip of rows stays in the first-level cache until all columns of the leaf are
 *                           solved. Operations have the order of `_one_by_one` in gptq.py, and products are not fused
 *                           with sums (-ffp-contract=off): both give the same bits.
 * plumbline_solver_product  C += A B, because PyTorch's MKL does not use AVX-512 on processors of other makers than Intel.
 *                           The order of a sum depends neither on its place in C nor on the shapes.
 *
 * Plain C: no Python and no PyTorch headers, no state, no threads. Instructions beyond the baseline are in separate
 * functions, which run only if the processor supports them.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define VERSION 2 /* of this interface; solver.py refuses any other */
#define EXPORT __attribute__((visibility("default")))

#if defined(__x86_64__) && defined(__GNUC__) && defined(__gnu_linux__)
#include <immintrin.h>
#define ANY __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define WIDE __attribute__((target("avx512f")))
#define HAVE_WIDE 1
#else
#define ANY
#define HAVE_WIDE 0
#endif

enum { STRIP = 64, LEAF = 32 };

EXPORT int plumbline_version(void) { return VERSION; }

EXPORT int plumbline_solver_leaf(void) { return LEAF; }

static inline double bfloat16_to_double(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Round a finite value to bfloat16, to nearest, ties to even. */
static inline double through_bfloat16(double value) {
    float narrow = (float)value;
    uint32_t bits;
    memcpy(&bits, &narrow, sizeof bits);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
    memcpy(&narrow, &bits, sizeof narrow);
    return narrow;
}

/* Floating-point numbers with a mantissa of m bits, the smallest normal one 2^e0: see numbers.py, which counts codes.
 * The step between numbers in the binade of |q| is 2^(e - m). */
static inline double power(int64_t e) {
    uint64_t bits = (uint64_t)(e + 1023) << 52;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline int64_t binade(double magnitude, int64_t e0) {
    uint64_t bits;
    memcpy(&bits, &magnitude, sizeof bits);
    int64_t e = (int64_t)(bits >> 52) - 1023;
    return e > e0 ? e : e0;
}

/* Solve `columns` <= LEAF columns of `rows` rows.
 *
 * W       columns x rows, the weight itself, bfloat16 or float32; rows of the matrix lie `rows` apart, as in B, codes, R
 * B       columns x rows: in, the target of each column; out, its total error W - q
 * L       columns x columns, unit lower triangular, its rows `stride` apart: column k gets L[k][j] * error of column j
 * group   per column, which row of s and z is its scale and zero point
 * s, z    groups x rows; z is NULL where the grid is symmetric
 * low, high  smallest and largest code
 * m, e0   of floating-point numbers; m < 0: integers
 * codes   out. R: out, the error of each column against its target
 */
ANY EXPORT void plumbline_solver_columns(
    int64_t rows, int64_t columns, const void *W, int bfloat16, double *B, const double *L, int64_t stride,
    const int64_t *group, const double *s, const double *z, double low, double high, int m, int e0,
    int8_t *codes, double *R) {
    /* A code of 2^m and more is a normal number: a binade holds 2^m of them. */
    const int64_t top = m < 0 ? 0 : (int64_t)high;
    const int64_t top_binade = m < 0 || top >> m < 1 ? 0 : (top >> m) - 1;
    const double largest = m < 0 ? 0 : (double)(top - (top_binade << m)) * power(top_binade + e0 - m);
    double b[LEAF][STRIP] __attribute__((aligned(64)));
    double w[STRIP] __attribute__((aligned(64)));
    double running[STRIP] __attribute__((aligned(64)));
    for (int64_t start = 0; start < rows; start += STRIP) {
        int64_t n = rows - start < STRIP ? rows - start : STRIP;
        for (int64_t j = 0; j < columns; j++) {
            for (int64_t r = 0; r < n; r++) b[j][r] = B[j * rows + start + r];
            for (int64_t r = n; r < STRIP; r++) b[j][r] = 0;
        }
        for (int64_t j = 0; j < columns; j++) {
            const double *scale = s + group[j] * rows + start;
            const double *zero = z ? z + group[j] * rows + start : 0;
            int8_t *code = codes + j * rows + start;
            double *residual = R + j * rows + start;
            if (m >= 0) {
                for (int64_t r = 0; r < n; r++) {
                    const double q = b[j][r] / scale[r];
                    double magnitude = fabs(q);
                    magnitude = magnitude > largest ? largest : magnitude;
                    const int64_t e = binade(magnitude, e0);
                    const double steps = rint(magnitude * power(m - e));
                    const double k = steps + (double)((e - e0) * ((int64_t)1 << m));
                    code[r] = (int8_t)(q < 0 ? -k : k);
                    const double value = steps * power(e - m);
                    running[r] = (q < 0 ? -value : value) * scale[r];
                }
            } else for (int64_t r = 0; r < n; r++) {
                double q = b[j][r] / scale[r];
                if (zero) q += zero[r];
                q = rint(q);
                q = q < low ? low : q;
                q = q > high ? high : q;
                code[r] = (int8_t)q;
                if (zero) q -= zero[r];
                running[r] = q * scale[r];
            }
            if (bfloat16) {
                const uint16_t *weight = (const uint16_t *)W + j * rows + start;
                for (int64_t r = 0; r < n; r++) running[r] = through_bfloat16(running[r]);
                for (int64_t r = 0; r < n; r++) w[r] = bfloat16_to_double(weight[r]);
            } else {
                const float *weight = (const float *)W + j * rows + start;
                for (int64_t r = 0; r < n; r++) running[r] = (float)running[r];
                for (int64_t r = 0; r < n; r++) w[r] = weight[r];
            }
            for (int64_t r = 0; r < n; r++) {
                residual[r] = b[j][r] - running[r];
                b[j][r] = w[r] - running[r];
            }
            for (int64_t k = j + 1; k < columns; k++) {
                double m = L[k * stride + j];
                for (int64_t r = 0; r < STRIP; r++) b[k][r] += m * b[j][r];
            }
        }
        for (int64_t j = 0; j < columns; j++)
            for (int64_t r = 0; r < n; r++) B[j * rows + start + r] = b[j][r];
    }
}

enum { ROWS = 8, LANES = 8, VECTORS = 3, PANEL = LANES * VECTORS, DEPTH = 256, PANELS = 16 };
/* A block of ROWS x PANEL sums is 24 accumulators; with 3 operands and one broadcast they fill 28 of 32 registers.
 * DEPTH x PANELS panels of B fill most of a second-level cache of 1 MiB, DEPTH x ROWS of A half a first-level one. */

EXPORT int plumbline_solver_wide(void) {
#if HAVE_WIDE
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") != 0;
#else
    return 0;
#endif
}

#if HAVE_WIDE
WIDE static void block(int64_t depth, const double *a, const double *b, double *c, int64_t stride, double sign,
                       int64_t rows, int64_t columns) {
    __m512d sum[ROWS][VECTORS];
    for (int i = 0; i < ROWS; i++)
        for (int v = 0; v < VECTORS; v++) sum[i][v] = _mm512_setzero_pd();
    for (int64_t k = 0; k < depth; k++) {
        __m512d row[VECTORS];
        for (int v = 0; v < VECTORS; v++) row[v] = _mm512_load_pd(b + k * PANEL + v * LANES);
        for (int i = 0; i < ROWS; i++) {
            __m512d one = _mm512_set1_pd(a[k * ROWS + i]);
            for (int v = 0; v < VECTORS; v++) sum[i][v] = _mm512_fmadd_pd(one, row[v], sum[i][v]);
        }
    }
    __m512d factor = _mm512_set1_pd(sign);
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < VECTORS; v++) {
            int64_t left = columns - v * LANES;
            if (left <= 0) break;
            __mmask8 mask = left >= LANES ? 0xff : (__mmask8)((1u << left) - 1);
            double *at = c + i * stride + v * LANES;
            __m512d before = _mm512_maskz_loadu_pd(mask, at);
            _mm512_mask_storeu_pd(at, mask, _mm512_fmadd_pd(factor, sum[i][v], before));
        }
}

/* C += sign * A B, where sign is 1 or -1.
 *
 * A       m x depth: element (i, k) at a_row * i + a_column * k
 * B       depth x n, rows b_row apart. C: m x n, rows c_row apart; it overlaps neither A nor B
 * lower   nonzero: blocks of C entirely above the diagonal are not updated
 *
 * Returns 0, or 1 if memory runs out; then C is unchanged.
 */
WIDE EXPORT int plumbline_solver_product(
    int64_t m, int64_t n, int64_t depth, const double *A, int64_t a_row, int64_t a_column, const double *B,
    int64_t b_row, double *C, int64_t c_row, double sign, int lower) {
    int64_t tiles = (m + ROWS - 1) / ROWS;
    double *a = aligned_alloc(64, sizeof(double) * (size_t)(tiles * ROWS * DEPTH));
    double *b = aligned_alloc(64, sizeof(double) * PANELS * PANEL * DEPTH);
    if (!a || !b) {
        free(a);
        free(b);
        return 1;
    }
    for (int64_t k0 = 0; k0 < depth; k0 += DEPTH) {
        int64_t d = depth - k0 < DEPTH ? depth - k0 : DEPTH;
        for (int64_t t = 0; t < tiles; t++)
            for (int64_t i = 0; i < ROWS; i++) {
                int64_t row = t * ROWS + i;
                for (int64_t k = 0; k < d; k++)
                    a[t * ROWS * DEPTH + k * ROWS + i] = row < m ? A[row * a_row + (k0 + k) * a_column] : 0;
            }
        for (int64_t n0 = 0; n0 < n; n0 += PANELS * PANEL) {
            int64_t width = n - n0 < PANELS * PANEL ? n - n0 : PANELS * PANEL;
            for (int64_t k = 0; k < d; k++) {
                const double *from = B + (k0 + k) * b_row + n0;
                for (int64_t p = 0; p * PANEL < width; p++) {
                    double *to = b + p * PANEL * DEPTH + k * PANEL;
                    int64_t here = width - p * PANEL < PANEL ? width - p * PANEL : PANEL;
                    for (int64_t c = 0; c < here; c++) to[c] = from[p * PANEL + c];
                    for (int64_t c = here; c < PANEL; c++) to[c] = 0;
                }
            }
            for (int64_t t = 0; t < tiles; t++) {
                int64_t rows = m - t * ROWS < ROWS ? m - t * ROWS : ROWS;
                for (int64_t p = 0; p * PANEL < width; p++) {
                    int64_t column = n0 + p * PANEL;
                    if (lower && column > t * ROWS + rows - 1) break;
                    int64_t here = width - p * PANEL < PANEL ? width - p * PANEL : PANEL;
                    block(d, a + t * ROWS * DEPTH, b + p * PANEL * DEPTH, C + t * ROWS * c_row + column, c_row, sign,
                          rows, here);
                }
            }
        }
    }
    free(a);
    free(b);
    return 0;
}
#else
EXPORT int plumbline_solver_product(
    int64_t m, int64_t n, int64_t depth, const double *A, int64_t a_row, int64_t a_column, const double *B,
    int64_t b_row, double *C, int64_t c_row, double sign, int lower) {
    (void)m, (void)n, (void)depth, (void)A, (void)a_row, (void)a_column, (void)B, (void)b_row, (void)C, (void)c_row;
    (void)sign, (void)lower;
    return 1;
}
#endif
