/* Coordinate descent over the codes of a weight; descent.py calls it and defines the algorithm.
 *
 * Plain C: no Python and no PyTorch headers, no state, no threads. A product and a difference are rounded
 * separately (no fused multiply-add), so that PyTorch computes the same bits.
 */
#include <stdint.h>
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#else
#pragma STDC FP_CONTRACT OFF
#endif
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORS
#endif

enum { VERSION = 1 }; /* of this interface; descent.py refuses any other */

EXPORT int plumbline_version(void) { return VERSION; }

enum { BLOCK = 64 }; /* columns whose rows of S stay in the cache while all rows of the weight are processed */

typedef struct {
    int64_t column;
    double step;
} Change;

/* g[k] -= step * S[column][k] for each change, k in [from, to). Two changes at a time: g is read and written once. */
VECTORS static void subtract(double *restrict g, const double *S, int64_t n, const Change *changes, int64_t count,
                             int64_t from, int64_t to) {
    int64_t i = 0;
    for (; i + 1 < count; i += 2) {
        const double *restrict s = S + changes[i].column * n, *restrict t = S + changes[i + 1].column * n;
        const double a = changes[i].step, b = changes[i + 1].step;
        for (int64_t k = from; k < to; k++)
            g[k] = (g[k] - a * s[k]) - b * t[k];
    }
    if (i < count) {
        const double *restrict s = S + changes[i].column * n;
        const double a = changes[i].step;
        for (int64_t k = from; k < to; k++)
            g[k] -= a * s[k];
    }
}

/* Returns the number of changes, or -1 if memory runs out. `levels` + row * row_stride + (column / group) * count
 * holds the weights that the codes first ... first + count - 1 stand for, ascending. */
EXPORT int64_t plumbline_descend(const double *S, int64_t n, double *G, int8_t *codes, int64_t rows,
                                 const double *levels, int64_t row_stride, int64_t group, int64_t first, int64_t count,
                                 double margin, int64_t sweeps) {
    const int64_t most = BLOCK * count; /* within a block, a column moves in one direction only */
    Change *changes = malloc(sizeof(Change) * (size_t)most);
    char *settled = malloc((size_t)rows + 1), *moved = malloc((size_t)rows + 1);
    int64_t total = 0, open = 1;
    if (!changes || !settled || !moved) {
        free(changes), free(settled), free(moved);
        return -1;
    }
    for (int64_t r = 0; r < rows; r++)
        settled[r] = 0;
    for (int64_t sweep = 0; sweep < sweeps && open; sweep++) {
        open = 0;
        for (int64_t r = 0; r < rows; r++)
            moved[r] = 0;
        for (int64_t start = 0; start < n; start += BLOCK) {
            const int64_t stop = start + BLOCK < n ? start + BLOCK : n;
            for (int64_t r = 0; r < rows; r++) {
                if (settled[r])
                    continue;
                double *g = G + r * n;
                int64_t n_changes = 0;
                for (int64_t j = start; j < stop; j++) {
                    const double *level = levels + r * row_stride + (j / group) * count;
                    const double s = S[j * n + j];
                    if (!(s > 0))
                        continue;
                    for (;;) {
                        const int64_t code = codes[r * n + j] - first, to = g[j] > 0 ? code + 1 : code - 1;
                        if (to < 0 || to >= count || n_changes == most)
                            break;
                        const double step = level[to] - level[code];
                        const double gain = g[j] > 0 ? 2 * g[j] : -2 * g[j];
                        const double cost = (g[j] > 0 ? step : -step) * s;
                        if (!(cost > 0) || !(gain > margin * cost))
                            break;
                        codes[r * n + j] = (int8_t)(to + first);
                        changes[n_changes].column = j, changes[n_changes].step = step;
                        subtract(g, S, n, changes + n_changes, 1, start, stop);
                        n_changes++;
                    }
                }
                if (n_changes) {
                    subtract(g, S, n, changes, n_changes, 0, start);
                    subtract(g, S, n, changes, n_changes, stop, n);
                    moved[r] = 1, total += n_changes, open = 1;
                }
            }
        }
        for (int64_t r = 0; r < rows; r++)
            settled[r] |= !moved[r];
    }
    free(changes), free(settled), free(moved);
    return total;
}
