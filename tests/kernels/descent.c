/* Calls what descent.c exports at edge shapes: codes stay in their range, gradients are right, nothing is left to gain. */
#include "checks.h"

int plumbline_version(void);
int64_t plumbline_descend(const double *S, int64_t n, double *G, int8_t *codes, int64_t rows, const double *levels,
                          int64_t row_stride, int64_t group, int64_t first, int64_t count, double margin,
                          int64_t sweeps);

static const double MARGIN = 1 + 1e-9;

static void descend(int64_t n, int64_t rows, int64_t group, int64_t bits, int per_tensor) {
    int64_t count = (int64_t)1 << bits, first = -count / 2, groups = n / group, tokens = n + 2;
    int64_t stride = per_tensor ? 0 : groups * count;
    double *X = buffer(tokens * n, sizeof *X), *S = buffer(n * n, sizeof *S), *G = buffer(rows * n, sizeof *G);
    double *W = buffer(rows * n, sizeof *W), *levels = buffer((per_tensor ? 1 : rows) * groups * count, sizeof *levels);
    int8_t *codes = buffer(rows * n, 1);
    int64_t dead = n > 2 ? n / 2 : -1; /* a channel that was never used */
    for (int64_t i = 0; i < tokens * n; i++) X[i] = i % n == dead ? 0 : value() + 0.3;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            for (int64_t t = 0; t < tokens; t++) S[i * n + j] += X[t * n + i] * X[t * n + j];
    for (int64_t i = 0; i < (per_tensor ? 1 : rows) * groups; i++) {
        double scale = (2.0 + fabs(value())) / (double)count;
        for (int64_t c = 0; c < count; c++) levels[i * count + c] = (double)(first + c) * scale;
    }
    for (int64_t i = 0; i < rows * n; i++) {
        W[i] = 2 * value(); /* beyond the grid on either side */
        codes[i] = (int8_t)(first + below(count));
    }
#define LEVEL(r, j) (levels + (r) * stride + ((j) / group) * count - first)
#define GRADIENT(sum, r, k) \
    for (int64_t j = 0; j < n; j++) sum += (W[(r) * n + j] - LEVEL(r, j)[codes[(r) * n + j]]) * S[j * n + (k)]
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < n; k++) GRADIENT(G[r * n + k], r, k);

    CHECK(plumbline_descend(S, n, G, codes, rows, levels, stride, group, first, count, MARGIN, 1000) >= 0);

    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < n; k++) {
            double g = 0, s = S[k * n + k];
            int code = codes[r * n + k];
            CHECK(code >= first && code < first + count);
            GRADIENT(g, r, k);
            CHECK(is_near(G[r * n + k], g, 1e-9 * (1 + s)));
            int to = g > 0 ? code + 1 : code - 1;
            if (!(s > 0) || to < first || to >= first + count) continue;
            double step = LEVEL(r, k)[to] - LEVEL(r, k)[code];
            CHECK(2 * fabs(g) <= fabs(step) * s * (1 + 1e-6));
        }
    release();
}

int main(void) {
    const int64_t n[] = {1, 2, 63, 64, 65, 130}, rows[] = {0, 1, 3}, bits[] = {2, 3, 4, 8};
    CHECK(plumbline_version() > 0);
    for (kind = 0; kind < KINDS; kind++)
        for (int64_t i = 0; i < COUNT(n); i++)
            for (int64_t r = 0; r < COUNT(rows); r++)
                for (int64_t b = 0; b < COUNT(bits); b++) {
                    descend(n[i], rows[r], n[i], bits[b], 1);
                    descend(n[i], rows[r], n[i] % 13 == 0 ? 13 : 1, bits[b], 0);
                }
    return 0;
}
