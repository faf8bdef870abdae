/* Calls what solver.c exports at edge shapes, against plain loops. */
#include "checks.h"

int plumbline_version(void);
int plumbline_solver_leaf(void);
int plumbline_solver_wide(void);
void plumbline_solver_columns(int64_t rows, int64_t columns, const void *W, int bfloat16, double *B, const double *L,
                              int64_t stride, const int64_t *group, const double *s, const double *z, double low,
                              double high, int m, int e0, int8_t *codes, double *R);
int plumbline_solver_product(int64_t m, int64_t n, int64_t depth, const double *A, int64_t a_row, int64_t a_column,
                             const double *B, int64_t b_row, double *C, int64_t c_row, double sign, int lower);

/* The code of the floating-point number that is nearest to q, by trying all: codes count them in ascending order. */
static int8_t nearest(double q, int high, int m, int e0, double *number) {
    int best = 0;
    double least = HUGE_VAL;
    for (int k = 0; k <= high; k++) {
        int binade = k >> m > 1 ? (k >> m) - 1 : 0;
        double v = ldexp(k - (binade << m), binade + e0 - m), distance = fabs(fabs(q) - v);
        if (distance < least || (distance == least && k % 2 == 0)) best = k, least = distance, *number = v;
    }
    *number = q < 0 ? -*number : *number;
    return (int8_t)(q < 0 ? -best : best);
}

static void columns(int64_t rows, int64_t n, int bfloat16, int with_zero, int m) {
    int high = m < 0 ? 7 : m == 1 ? 7 : 126, e0 = m == 3 ? -6 : 0;
    int64_t stride = n + 3, groups = (n + 7) / 8;
    void *W = buffer(rows * n, bfloat16 ? sizeof(uint16_t) : sizeof(float));
    double *B = buffer(rows * n, sizeof *B), *L = buffer((n - 1) * stride + n, sizeof *L);
    double *s = buffer(groups * rows, sizeof *s), *z = with_zero ? buffer(groups * rows, sizeof *z) : NULL;
    double *R = buffer(rows * n, sizeof *R), *expected = buffer(rows * n, sizeof *expected);
    int64_t *group = buffer(n, sizeof *group);
    int8_t *codes = buffer(rows * n, 1);
    for (int64_t i = 0; i < rows * n; i++) {
        double w = value();
        if (bfloat16) {
            ((uint16_t *)W)[i] = to_bfloat16(w);
            B[i] = expected[i] = from_bfloat16(to_bfloat16(w));
        } else {
            ((float *)W)[i] = (float)w;
            B[i] = expected[i] = w;
        }
    }
    for (int64_t i = 0; i < (n - 1) * stride + n; i++) L[i] = value() / 8;
    for (int64_t i = 0; i < groups * rows; i++) {
        s[i] = from_bfloat16(to_bfloat16(0.1 + fabs(value()) / 4));
        if (z) z[i] = (double)below(8) - 4;
    }
    for (int64_t j = 0; j < n; j++) group[j] = j / 8;

    plumbline_solver_columns(rows, n, W, bfloat16, B, L, stride, group, s, z, m < 0 ? -8 : -high, high, m, e0, codes, R);

    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < n; j++) {
            double *b = &expected[j * rows + r], scale = s[group[j] * rows + r], zero = z ? z[group[j] * rows + r] : 0;
            double w = bfloat16 ? from_bfloat16(((uint16_t *)W)[j * rows + r]) : ((float *)W)[j * rows + r];
            double code = fmin(fmax(rint(*b / scale + zero), -8), 7), running = (code - zero) * scale;
            if (m >= 0) {
                code = nearest(*b / scale, high, m, e0, &running);
                running *= scale;
            }
            CHECK(codes[j * rows + r] == (int8_t)code);
            double tolerance = (bfloat16 ? 0x1p-8 : 0x1p-23) * (1 + fabs(running));
            CHECK(is_near(R[j * rows + r], *b - running, tolerance));
            CHECK(is_near(B[j * rows + r], w - running, tolerance));
            double error = B[j * rows + r];
            for (int64_t k = j + 1; k < n; k++) expected[k * rows + r] += L[k * stride + j] * error;
        }
    release();
}

static void product(int64_t m, int64_t n, int64_t depth, int transposed, double sign, int lower) {
    int64_t b_row = n + 3, c_row = n + 5, a_row = transposed ? 1 : depth, a_column = transposed ? m : 1;
    double *A = buffer(m * depth, sizeof *A), *B = buffer((depth - 1) * b_row + n, sizeof *B);
    double *C = buffer((m - 1) * c_row + n, sizeof *C), *before = buffer((m - 1) * c_row + n, sizeof *before);
    for (int64_t i = 0; i < m * depth; i++) A[i] = value();
    for (int64_t i = 0; i < (depth - 1) * b_row + n; i++) B[i] = value();
    for (int64_t i = 0; i < (m - 1) * c_row + n; i++) C[i] = before[i] = value();

    CHECK(plumbline_solver_product(m, n, depth, A, a_row, a_column, B, b_row, C, c_row, sign, lower) == 0);

    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < c_row && i * c_row + j < (m - 1) * c_row + n; j++) {
            int64_t at = i * c_row + j;
            double sum = 0;
            if (j >= n) {
                CHECK(C[at] == before[at]);
            } else if (!lower || j <= i) {
                for (int64_t k = 0; k < depth; k++) sum += A[i * a_row + k * a_column] * B[k * b_row + j];
                CHECK(is_near(C[at], before[at] + sign * sum, 1e-11));
            }
        }
    release();
}

int main(void) {
    const int64_t rows[] = {0, 1, 63, 64, 65, 130}, widths[] = {1, 2, 9, plumbline_solver_leaf()};
    const int64_t m[] = {1, 7, 8, 9, 17}, n[] = {1, 8, 23, 24, 25, 385}, depth[] = {1, 3, 256, 257};
    CHECK(plumbline_version() > 0);
    for (kind = 0; kind < KINDS; kind++) {
        for (int64_t r = 0; r < COUNT(rows); r++)
            for (int64_t c = 0; c < COUNT(widths); c++)
                for (int i = 0; i < 4; i++) {
                    columns(rows[r], widths[c], i & 1, i & 2, -1);
                    columns(rows[r], widths[c], i & 1, 0, i & 2 ? 3 : 1);
                }
        for (int64_t i = 0; plumbline_solver_wide() && i < COUNT(m); i++)
            for (int64_t j = 0; j < COUNT(n); j++)
                for (int64_t k = 0; k < COUNT(depth); k++) {
                    product(m[i], n[j], depth[k], 0, 1, 0);
                    product(m[i], n[j], depth[k], 1, -1, 1);
                }
    }
    return 0;
}
