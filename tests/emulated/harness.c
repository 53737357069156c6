/* Calls every kernel of this build with the cases of a file and compares the results bit for bit. run.py writes the
 * file, compiles this and runs it; the file is in the byte order of the machine.
 *
 *     harness CASES
 *
 * Every array ends at a page that may not be touched, so a kernel that reads or writes past one is stopped. Prints
 * "<kernel>: N cases equal" per kernel; returns 1 with the first difference. */
#define _DEFAULT_SOURCE
#if defined(BITNET_EMULATED)
#  include "simde.h"
#endif

#include "kernels/head.h"
#include "kernels/i2.h"
#include "kernels/lut.h"
#include "kernels/quant.h"
#include "kernels/t5.h"
#if defined(BITNET_EMULATED)
static uint32_t bitnet_cpu_features(void) { return UINT32_MAX; }
#else
#  include "kernels/cpu.h"
#endif

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { I2, T5, QUANT, HEAD, WIDE, LUT_I2, LUT_T5, KINDS, MAX_KERNELS = 8 };
static const char *const KIND_NAMES[KINDS] = {"i2", "t5", "quant", "head", "head_wide", "i2_lut", "t5_lut"};
static const bitnet_kernel *const PANEL_KERNELS[] = {I2_KERNELS, T5_KERNELS};

static char case_name[64];
static long equal_cases[KINDS][MAX_KERNELS];

static void stop(const char *why) {
    fprintf(stderr, "harness: %s\n", why);
    exit(2);
}

/* ---- arrays with a forbidden page behind them ---- */

typedef struct {
    void *data, *pages;
    size_t size, pages_size;
} guarded;

static guarded guarded_array(size_t size) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (size + page - 1) / page * page;
    guarded a = {NULL, NULL, size, whole + page};
    a.pages = mmap(NULL, a.pages_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (a.pages == MAP_FAILED || mprotect((char *)a.pages + whole, page, PROT_NONE)) stop("no memory for the cases");
    a.data = (char *)a.pages + whole - size;
    return a;
}

static void release(guarded a) { munmap(a.pages, a.pages_size); }

static void read_bytes(FILE *file, void *to, size_t size) {
    if (size && fread(to, size, 1, file) != 1) stop("the file of cases ends too early");
}

static guarded read_array(FILE *file, size_t size) {
    const guarded a = guarded_array(size);
    read_bytes(file, a.data, size);
    return a;
}

/* ---- comparison ---- */

static int can_run(uint32_t needs) { return (bitnet_cpu_features() & needs) == needs; }

static void differ(int kind, const char *isa, const char *what, long index, double got, double expected) {
    printf("%s_%s: case \"%s\": %s[%ld] is %.17g, expected %.17g\n", KIND_NAMES[kind], isa, case_name, what, index, got,
           expected);
    exit(1);
}

#define COMPARE(kind, isa, what, type, got, expected, count)                                         \
    for (long i_ = 0; i_ < (long)(count); i_++)                                                      \
        if (memcmp((const type *)(got) + i_, (const type *)(expected) + i_, sizeof(type)))           \
            differ(kind, isa, what, i_, (double)((const type *)(got))[i_], (double)((const type *)(expected))[i_]);

typedef struct {
    int64_t tiles, tile_cols, tokens, x_stride;
} panel_header;

/* header, w, x, sums[16 * token + row] */
static void panel_case(FILE *file, int kind) {
    panel_header h;
    read_bytes(file, &h, sizeof h);
    const guarded w = read_array(file, (size_t)h.tiles * BITNET_TILE_BYTES);
    const guarded x = read_array(file, (size_t)((h.tokens - 1) * h.x_stride + h.tiles * h.tile_cols));
    const guarded expected = read_array(file, (size_t)h.tokens * 16 * sizeof(int32_t));
    const guarded sums = guarded_array(expected.size);
    for (int k = 0; PANEL_KERNELS[kind][k].isa; k++) {
        const bitnet_kernel *kernel = &PANEL_KERNELS[kind][k];
        if (!can_run(kernel->needs)) continue;
        memset(sums.data, 0x5a, sums.size);
        kernel->panel(w.data, x.data, h.x_stride, sums.data, h.tiles, h.tokens);
        COMPARE(kind, kernel->isa, "sums", int32_t, sums.data, expected.data, 16 * h.tokens);
        equal_cases[kind][k]++;
    }
    release(w), release(x), release(expected), release(sums);
}

typedef struct {
    int64_t tiles, inputs, x_stride;
} head_header;

/* header, w, x, sums[16 * input + row] without bias, the sums of x */
static void head_case(FILE *file) {
    head_header h;
    read_bytes(file, &h, sizeof h);
    const guarded w = read_array(file, (size_t)h.tiles * HEAD_TILE_BYTES);
    const guarded x = read_array(file, (size_t)((h.inputs - 1) * h.x_stride + h.tiles * HEAD_COLS));
    const guarded expected = read_array(file, (size_t)h.inputs * 16 * sizeof(int32_t));
    const guarded x_sums = read_array(file, (size_t)h.inputs * sizeof(int32_t)), sums = guarded_array(expected.size);
    for (int k = 0; HEAD_KERNELS[k].isa; k++) {
        const bitnet_head_kernel *kernel = &HEAD_KERNELS[k];
        if (!can_run(kernel->needs) || kernel->panel == NULL) continue;
        memset(sums.data, 0x5a, sums.size);
        kernel->panel(w.data, x.data, h.x_stride, sums.data, h.tiles, h.inputs);
        for (long i = 0; i < 16 * h.inputs; i++)
            ((int32_t *)sums.data)[i] -= kernel->bias * ((const int32_t *)x_sums.data)[i / 16];
        COMPARE(HEAD, kernel->isa, "sums", int32_t, sums.data, expected.data, 16 * h.inputs);
        equal_cases[HEAD][k]++;
    }
    release(w), release(x), release(expected), release(x_sums), release(sums);
}

/* header, w, x (int16), sums[16 * token + row] (double) */
static void wide_case(FILE *file) {
    head_header h;
    read_bytes(file, &h, sizeof h);
    const guarded w = read_array(file, (size_t)h.tiles * HEAD_TILE_BYTES);
    const guarded x = read_array(file, (size_t)((h.inputs - 1) * h.x_stride + h.tiles * HEAD_COLS) * sizeof(int16_t));
    const guarded expected = read_array(file, (size_t)h.inputs * 16 * sizeof(double));
    const guarded sums = guarded_array(expected.size);
    for (int k = 0; HEAD_KERNELS[k].isa; k++) {
        const bitnet_head_kernel *kernel = &HEAD_KERNELS[k];
        if (!can_run(kernel->needs) || kernel->wide == NULL) continue;
        memset(sums.data, 0x5a, sums.size);
        kernel->wide(w.data, x.data, h.x_stride, sums.data, h.tiles, h.inputs);
        COMPARE(WIDE, kernel->isa, "sums", double, sums.data, expected.data, 16 * h.inputs);
        equal_cases[WIDE][k]++;
    }
    release(w), release(x), release(expected), release(sums);
}

typedef struct {
    int64_t tiles, tile_cols, panels, tokens;
} lut_header;

/* A whole product, as lut.pyx does it, with short sums widened after each part. */
static void look_up_all(const bitnet_lut_kernel *kernel, const bitnet_look_up *how, const lut_header *h, const uint8_t *w,
                        const int8_t *x, int32_t *y) {
    static BITNET_ALIGN64 uint8_t tables[LUT_MOST_TABLES_BYTES], indices[3 * LUT_MOST_PART_BYTES];
    static BITNET_ALIGN64 int16_t short_sums[3 * 16 * 2 * LUT_SQUARE];
    static BITNET_ALIGN64 int32_t sums[2][3 * 16 * LUT_SQUARE];
    const ptrdiff_t cols = h->tiles * h->tile_cols, squares = (h->tokens + LUT_SQUARE - 1) / LUT_SQUARE;
    if (h->panels > 3) stop("a look-up case has more panels than there is room for");
    for (ptrdiff_t first = 0; first < h->tiles; first += how->part_tiles) {
        const ptrdiff_t tiles = h->tiles - first < how->part_tiles ? h->tiles - first : how->part_tiles;
        const ptrdiff_t needed = (tiles + how->pass_tiles - 1) / how->pass_tiles;
        const ptrdiff_t passes = needed < how->part_passes ? needed : how->part_passes;
        how->index(w + first * BITNET_TILE_BYTES, h->tiles * BITNET_TILE_BYTES, h->panels, tiles, 0, passes,
                   squares == 2 ? 6 : 5, indices);
        for (ptrdiff_t pass = 0; pass < passes; pass++) {
            kernel->tables(x + first * h->tile_cols, cols, h->tokens, tiles, pass, h->tile_cols, tables);
            lut_run run = {.indices = indices + pass * h->panels * how->pass_bytes, .tables = tables, .squares = squares,
                           .tile_cols = h->tile_cols, .tiles = tiles - 2 * pass < 2 ? tiles - 2 * pass : 2,
                           .panels = h->panels, .short_sums = short_sums, .is_first = pass == 0,
                           .is_last = pass + 1 == passes, .is_new = first == 0, .next = w};
            for (int i = 0; i < squares; i++)
                run.sums[i] = (lut_square){sums[i], 16 * 16 * LUT_SQUARE, 16 * LUT_SQUARE, LUT_SQUARE};
            kernel->look_up(&run);
        }
    }
    for (ptrdiff_t i = 0; i < squares; i++)
        for (ptrdiff_t panel = 0; panel < h->panels; panel++)
            kernel->finish(sums[i] + panel * 16 * LUT_SQUARE, LUT_SQUARE, y + i * LUT_SQUARE * 16 * h->panels + 16 * panel,
                           16 * h->panels, 16, h->tokens - i * LUT_SQUARE < LUT_SQUARE ? h->tokens - i * LUT_SQUARE : LUT_SQUARE,
                           NULL, 0, NULL);
}

/* The largest sum of magnitudes over the first 252 columns, or all. */
static ptrdiff_t largest_sum(const lut_header *h, const int8_t *x, ptrdiff_t cols) {
    ptrdiff_t largest = 0;
    for (ptrdiff_t t = 0; t < h->tokens; t++) {
        ptrdiff_t sum = 0;
        for (ptrdiff_t c = 0; c < cols; c++) sum += abs(x[t * h->tiles * h->tile_cols + c]);
        largest = sum > largest ? sum : largest;
    }
    return largest;
}

/* header, w, x, y[token][row] */
static void lut_case(FILE *file, int kind) {
    lut_header h;
    read_bytes(file, &h, sizeof h);
    const guarded w = read_array(file, (size_t)(h.panels * h.tiles) * BITNET_TILE_BYTES);
    const guarded x = read_array(file, (size_t)(h.tokens * h.tiles * h.tile_cols));
    const guarded expected = read_array(file, (size_t)(h.tokens * h.panels * 16) * sizeof(int32_t));
    const guarded y = guarded_array(expected.size);
    const ptrdiff_t all = h.tiles * h.tile_cols, cols = all < 252 ? all : 252, largest = largest_sum(&h, x.data, cols);
    for (int k = 0; LUT_KERNELS[k].isa; k++)
        for (const bitnet_kernel *one = PANEL_KERNELS[kind - LUT_I2]; one->isa; one++) {
            const bitnet_lut_kernel *kernel = &LUT_KERNELS[k];
            if (!can_run(one->needs) || one->look_up.index == NULL || one->look_up.needs != kernel->needs) continue;
            if (h.tokens > LUT_SQUARE * kernel->squares) continue;
            const ptrdiff_t found = kernel->largest(x.data, all, h.tokens, cols);
            COMPARE(kind, one->isa, "largest", ptrdiff_t, &found, &largest, 1);
            memset(y.data, 0x5a, y.size);
            look_up_all(kernel, &one->look_up, &h, w.data, x.data, y.data);
            COMPARE(kind, one->isa, "y", int32_t, y.data, expected.data, h.tokens * h.panels * 16);
            equal_cases[kind][k]++;
        }
    release(w), release(x), release(expected), release(y);
}

typedef struct {
    int64_t n, is_finite;
    float s, a;
    uint32_t largest;
    int32_t sum;
    double lanes_before[16], lanes_after[16];
} quant_header;

/* header, x, t, q; only the largest is compared where a number is not finite */
static void quant_case(FILE *file) {
    quant_header h;
    read_bytes(file, &h, sizeof h);
    if (h.n < 0 || h.n > 1 << 20 || h.n % QUANT_STEP) stop("a quantisation case has no length that kernels take");
    const size_t n = (size_t)h.n;
    const guarded x = read_array(file, n * sizeof(float)), t = read_array(file, n), q = read_array(file, n);
    const guarded codes = guarded_array(n), lanes = guarded_array(sizeof h.lanes_before);
    for (int k = 0; QUANT_KERNELS[k].isa; k++) {
        const bitnet_quant_kernel *kernel = &QUANT_KERNELS[k];
        if (!can_run(kernel->needs)) continue;
        memcpy(lanes.data, h.lanes_before, lanes.size);
        const uint32_t largest[2] = {kernel->sum_abs(x.data, h.n, lanes.data), kernel->max_abs(x.data, h.n)};
        COMPARE(QUANT, kernel->isa, "sum_abs's largest", uint32_t, &largest[0], &h.largest, 1);
        COMPARE(QUANT, kernel->isa, "max_abs's largest", uint32_t, &largest[1], &h.largest, 1);
        if (h.is_finite) {
            COMPARE(QUANT, kernel->isa, "lanes", double, lanes.data, h.lanes_after, 16);
            memset(codes.data, 0x5a, n);
            kernel->ternary(x.data, h.n, h.s, codes.data, 0);
            COMPARE(QUANT, kernel->isa, "ternary", int8_t, codes.data, t.data, n);
            memset(codes.data, 0x55, n);
            kernel->ternary(x.data, h.n, h.s, codes.data, 1);
            COMPARE(QUANT, kernel->isa, "ternary, streamed", int8_t, codes.data, t.data, n);
            memset(codes.data, 0x5a, n);
            const int32_t sum = kernel->int8(x.data, h.n, h.a, codes.data);
            COMPARE(QUANT, kernel->isa, "int8", int8_t, codes.data, q.data, n);
            COMPARE(QUANT, kernel->isa, "int8's sum", int32_t, &sum, &h.sum, 1);
        }
        equal_cases[QUANT][k]++;
    }
    release(x), release(t), release(q), release(codes), release(lanes);
}

static void report(int kind, int k, const char *isa, uint32_t needs) {
    if (can_run(needs))
        printf("%s_%s: %ld cases equal\n", KIND_NAMES[kind], isa, equal_cases[kind][k]);
    else
        printf("%s_%s: not run, this CPU lacks it\n", KIND_NAMES[kind], isa);
}

int main(int argc, char **argv) {
    if (argc != 2) stop("one argument, the file of cases, is needed");
    FILE *file = fopen(argv[1], "rb");
    if (!file) stop("the file of cases cannot be opened");
    int64_t kind;
    while (fread(&kind, sizeof kind, 1, file) == 1) {
        read_bytes(file, case_name, sizeof case_name);
        case_name[sizeof case_name - 1] = 0;
        if (kind == QUANT)
            quant_case(file);
        else if (kind == HEAD)
            head_case(file);
        else if (kind == WIDE)
            wide_case(file);
        else if (kind == LUT_I2 || kind == LUT_T5)
            lut_case(file, (int)kind);
        else if (kind == I2 || kind == T5)
            panel_case(file, (int)kind);
        else
            stop("a case is of no known kind");
    }
    fclose(file);
    for (int p = I2; p <= T5; p++)
        for (int k = 0; PANEL_KERNELS[p][k].isa; k++) report(p, k, PANEL_KERNELS[p][k].isa, PANEL_KERNELS[p][k].needs);
    for (int k = 0; QUANT_KERNELS[k].isa; k++) report(QUANT, k, QUANT_KERNELS[k].isa, QUANT_KERNELS[k].needs);
    for (int k = 0; HEAD_KERNELS[k].isa; k++)
        report(HEAD_KERNELS[k].wide ? WIDE : HEAD, k, HEAD_KERNELS[k].isa, HEAD_KERNELS[k].needs);
    for (int kind = LUT_I2; kind <= LUT_T5; kind++)
        for (int k = 0; LUT_KERNELS[k].isa; k++) report(kind, k, LUT_KERNELS[k].isa, LUT_KERNELS[k].needs);
    return 0;
}
