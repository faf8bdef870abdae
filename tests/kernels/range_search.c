/* Calls what range_search.c exports at edge shapes: the candidate that it returns is of least error, and the first such. */
#include "checks.h"

int plumbline_version(void);
void plumbline_search_float(int64_t groups, int64_t size, int64_t candidates, const float *values, const float *weights,
                            int64_t first, int64_t periods, const float *s, const float *z, double low, double high,
                            int m, int e0, double *errors, int64_t *best);
void plumbline_search_double(int64_t groups, int64_t size, int64_t candidates, const double *values,
                             const double *weights, int64_t first, int64_t periods, const double *s, const double *z,
                             double low, double high, int m, int e0, double *errors, int64_t *best);

/* E2M1 in steps of its binade. */
static double nearest_e2m1(double x) {
    double magnitude = fmin(fabs(x), 6), step = magnitude < 2 ? 0.5 : magnitude < 4 ? 1 : 2;
    return copysign(rint(magnitude / step) * step, x);
}

#define SEARCH(real) \
    static void search_##real(int64_t groups, int64_t size, int64_t candidates, int weighted, int zeros, int floats) { \
        int64_t periods = 2, first = 1; \
        real *w = buffer(groups * size, sizeof *w), *v = weighted ? buffer(periods * size, sizeof *v) : NULL; \
        real *s = buffer(candidates * groups, sizeof *s), *z = zeros ? buffer(candidates * groups, sizeof *z) : NULL; \
        double *errors = buffer(candidates, sizeof *errors); \
        int64_t *best = buffer(groups, sizeof *best); \
        for (int64_t i = 0; i < groups * size; i++) w[i] = (real)(4 * value()); \
        for (int64_t i = 0; v && i < periods * size; i++) v[i] = (real)fabs(value()); \
        for (int64_t i = 0; i < candidates * groups; i++) { \
            s[i] = (real)(0.25 + fabs(value())); \
            if (z) z[i] = (real)(below(16) - 8); \
        } \
        plumbline_search_##real(groups, size, candidates, w, v, first, periods, s, z, -8, floats ? 6 : 7, \
                                floats ? 1 : -1, 0, errors, best); \
        for (int64_t i = 0; i < groups; i++) { \
            double least = INFINITY, found = INFINITY; \
            CHECK(best[i] >= 0 && best[i] < candidates); \
            for (int64_t c = 0; c < candidates; c++) { \
                double sum = 0, scale = s[c * groups + i], zero = z ? z[c * groups + i] : 0; \
                for (int64_t k = 0; k < size; k++) { \
                    double x = w[i * size + k] / scale, weight = v ? v[(first + i) % periods * size + k] : 1; \
                    double q = floats ? nearest_e2m1(x) : fmin(fmax(rint(x + zero), -8), 7) - zero; \
                    sum += weight * (q * scale - w[i * size + k]) * (q * scale - w[i * size + k]); \
                } \
                least = fmin(least, sum); \
                if (c == best[i]) found = sum; \
            } \
            CHECK(found <= least * 1.0001 + 1e-9); \
        } \
        release(); \
    }

SEARCH(float)
SEARCH(double)

int main(void) {
    const int64_t sizes[] = {1, 15, 16, 17, 64, 1023, 1024, 1025, 2089}, groups[] = {0, 1, 3}, candidates[] = {1, 5};
    CHECK(plumbline_version() > 0);
    for (kind = 0; kind < KINDS; kind++)
        for (int64_t i = 0; i < COUNT(sizes); i++)
            for (int64_t g = 0; g < COUNT(groups); g++)
                for (int64_t c = 0; c < COUNT(candidates); c++)
                    for (int how = 0; how < 6; how++) { /* weighted or not; with zero points; floating-point numbers */
                        search_float(groups[g], sizes[i], candidates[c], how % 2, how / 2 == 1, how / 2 == 2);
                        search_double(groups[g], sizes[i], candidates[c], how % 2, how / 2 == 1, how / 2 == 2);
                    }
    return 0;
}
