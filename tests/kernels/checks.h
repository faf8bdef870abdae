/* What the test drivers of the kernels share: buffers that end where they are said to end, random values, checks.
 *
 * AddressSanitizer does not see masked vector instructions. So every case runs with buffers of three kinds: from malloc,
 * which AddressSanitizer guards; with a page after the last byte, or before the first one, that may not be touched. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HEAP, PAGE_BEHIND, PAGE_BEFORE, KINDS };

typedef struct {
    void *start, *mapping;
    size_t mapped;
} Buffer;

enum { MOST_BUFFERS = 32 };
static Buffer buffers[MOST_BUFFERS];
static int in_use, kind;

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s, buffers of kind %d\n", __FILE__, __LINE__, #condition, kind); \
            exit(1); \
        } \
    } while (0)

/* A buffer of `count` elements of `size` bytes, in the kind that is tested now; `release` frees all. */
static inline void *buffer(int64_t count, size_t size) {
    size_t bytes = (size_t)count * size;
    CHECK(in_use < MOST_BUFFERS);
    Buffer *new = &buffers[in_use++];
    new->mapping = NULL;
    if (kind == HEAP) {
        new->start = malloc(bytes);
    } else {
        size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = (bytes + page - 1) / page * page;
        new->mapped = inner + 2 * page;
        new->mapping = mmap(NULL, new->mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(new->mapping != MAP_FAILED);
        char *middle = (char *)new->mapping + page;
        CHECK(inner == 0 || mprotect(middle, inner, PROT_READ | PROT_WRITE) == 0);
        new->start = kind == PAGE_BEFORE ? middle : middle + inner - bytes;
    }
    if (bytes) memset(new->start, 0, bytes);
    return new->start;
}

static inline void release(void) {
    while (in_use > 0) {
        Buffer *last = &buffers[--in_use];
        if (last->mapping)
            munmap(last->mapping, last->mapped);
        else
            free(last->start);
    }
}

static uint64_t state = 1;

/* Uniform in [0, n). */
static inline int64_t below(int64_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)((state >> 33) % (uint64_t)n);
}

/* In [-1, 1], with few enough digits for float32. */
static inline double value(void) { return (double)(below(1 << 20) - (1 << 19)) / (1 << 19); }

static inline int is_near(double a, double b, double tolerance) { return fabs(a - b) <= tolerance; }

static inline uint16_t to_bfloat16(double x) {
    float narrow = (float)x;
    uint32_t bits;
    memcpy(&bits, &narrow, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static inline double from_bfloat16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return x;
}

#define COUNT(array) ((int64_t)(sizeof(array) / sizeof *(array)))
