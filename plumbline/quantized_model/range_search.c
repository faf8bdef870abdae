/* The search over candidate scales that range_search.py defines.
 *
 * PyTorch takes a pass over the values per operation and candidate; here a block of values stays in the first-level
 * cache until all candidates are tried. Every operation is rounded by itself (-ffp-contract=off), and sums have the
 * order of `_squares` in range_search.py: both give the same bits.
 *
 * Plain C: no Python and no PyTorch headers, no state, no threads.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define VERSION 1 /* of this interface; range_search.py refuses any other */
#define EXPORT __attribute__((visibility("default")))

#if defined(__x86_64__) && defined(__GNUC__) && defined(__gnu_linux__)
#define ANY __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ANY
#endif
#define INLINE static inline __attribute__((always_inline)) /* into each clone, for its instructions */

enum { LANES = 16, BLOCK = 1024 };

EXPORT int plumbline_version(void) { return VERSION; }

#define REAL float
#define INTEGER int32_t
#define MANTISSA 23
#define BIAS 127
#define NEAREST rintf
#define SQUARES squares_float
#define SEARCH plumbline_search_float
#include "range_search.h"

#undef REAL
#undef INTEGER
#undef MANTISSA
#undef BIAS
#undef NEAREST
#undef SQUARES
#undef SEARCH

#define REAL double
#define INTEGER int64_t
#define MANTISSA 52
#define BIAS 1023
#define NEAREST rint
#define SQUARES squares_double
#define SEARCH plumbline_search_double
#include "range_search.h"
