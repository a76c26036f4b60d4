/* A fuzz target: programs of one or two steps, drawn from the input, against the C entry points.
 *
 * Most programs are valid, so that the kernels run: then every instruction set of this machine
 * has to give the same bits as the portable one. In the others the rest of the input overwrites
 * words of the records and slots; such a program is refused or runs, but reads and writes only what is its
 * own (build with AddressSanitizer and UndefinedBehaviorSanitizer).
 *
 * With libFuzzer (clang -fsanitize=fuzzer), or with -DSTANDALONE as a program of its own that
 * draws inputs from a seed: program SEED COUNT. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

enum { BLOB = 1 << 16, FLOATS = 1 << 12, SLOTS = 8, MOST_STEPS = 3 };
enum { CONSTANTS = FLOATS * sizeof(float), MULTIPLIERS = CONSTANTS + 1024 };
#define MOST_WORK ((int64_t)1 << 20) /* multiply-adds of a program that is run */
#define MOST_MEMORY ((int64_t)1 << 26)

typedef struct {
    const uint8_t *data;
    size_t size;
} Bytes;

static int64_t next(Bytes *bytes) {
    if (bytes->size == 0)
        return 0;
    bytes->size--;
    return *bytes->data++;
}

static int64_t between(Bytes *bytes, int64_t low, int64_t high) {
    return low + next(bytes) % (high - low + 1);
}

/* Floats of moderate size in front, then constants and positive multipliers, then weights
 * without -128. */
static void fill(uint8_t *blob, uint32_t seed) {
    for (size_t i = 0; i < BLOB; i++) {
        seed = seed * 1664525u + 1013904223u;
        blob[i] = (uint8_t)(seed >> 24 == 128 ? 0 : seed >> 24);
    }
    for (size_t i = 0; i < FLOATS; i++) {
        float value = (float)(int8_t)blob[4 * i] / 64;
        memcpy(blob + 4 * i, &value, sizeof value);
    }
    for (size_t i = MULTIPLIERS; i < MULTIPLIERS + 1024; i += 2)
        blob[i] |= 1, blob[i + 1] &= 127;
}

typedef struct {
    int64_t records[MOST_STEPS][FIELDS], slots[SLOTS][2];
    int64_t steps, input, output, result, work;
    int corrupted;
} Draft;

static int64_t in_blocks(int64_t channels) { return (channels + BLOCK - 1) / BLOCK * BLOCK; }

/* a slot for so many values */
static int64_t slot_for(Draft *draft, int64_t number, int64_t values, int64_t bytes) {
    draft->slots[number][0] = number ? draft->slots[number - 1][0] + draft->slots[number - 1][1] : 0;
    draft->slots[number][1] = (int64_t)aligned((size_t)(values * bytes));
    return number;
}

static void constants(Draft *draft, int64_t *f, Bytes *bytes, uint8_t *blob) {
    float limits[6] = {-INFINITY, INFINITY, -INFINITY, INFINITY, 4.0f, 1e-6f};
    if (next(bytes) & 1)
        limits[0] = 0;
    if (next(bytes) & 1)
        limits[3] = 1;
    limits[4] = (float)next(bytes) / 8;
    size_t offset = CONSTANTS + (size_t)draft->steps * 64;
    memcpy(blob + offset, limits, sizeof limits);
    f[F_CONSTANTS] = (int64_t)offset;
    f[F_GAIN] = 8 * between(bytes, 0, 99);
    f[F_BIAS] = 8 * between(bytes, 0, 99);
    f[F_SLOPE1] = next(bytes) & 1 ? 8 * between(bytes, 0, 99) : -1;
    f[F_SLOPE2] = next(bytes) & 1 ? 8 * between(bytes, 0, 99) : -1;
}

/* the window of a step, and the size that comes out of it */
static void window(int64_t *f, Bytes *bytes) {
    f[F_KH] = between(bytes, 1, 4), f[F_KW] = between(bytes, 1, 4);
    f[F_SY] = between(bytes, 1, 3), f[F_SX] = between(bytes, 1, 3);
    f[F_TOP] = between(bytes, 0, f[F_KH] - 1), f[F_LEFT] = between(bytes, 0, f[F_KW] - 1);
    f[F_HOUT] = (f[F_HIN] - 1 + f[F_TOP]) / f[F_SY] + 1;
    f[F_WOUT] = (f[F_WIN] - 1 + f[F_LEFT]) / f[F_SX] + 1;
}

/* where weights lie; codewords are zero beyond the last input channel, as the kernels may expect */
static void weights(int64_t *f, Bytes *bytes, uint8_t *blob) {
    static const int64_t counts[] = {16, 32, 64, 256};
    int64_t spare = BLOB / 2 + 8 * between(bytes, 0, 255);
    f[F_COUNT] = counts[next(bytes) & 3];
    f[F_LENGTH] = (int64_t)4 << next(bytes) % 2;
    f[F_SPACES] = (f[F_CIN] + f[F_LENGTH] - 1) / f[F_LENGTH];
    f[F_CODEWORDS] = spare, f[F_INDICES] = spare + 64, f[F_WEIGHTS] = spare;
    f[F_MULTIPLIERS] = MULTIPLIERS;
    int64_t last = f[F_CODEWORDS] + (f[F_SPACES] - 1) * f[F_COUNT] * f[F_LENGTH];
    for (int64_t k = 0; k < f[F_COUNT]; k++)
        for (int64_t j = f[F_CIN] - (f[F_SPACES] - 1) * f[F_LENGTH]; j < f[F_LENGTH]; j++)
            blob[last + k * f[F_LENGTH] + j] = 0;
}

static void draft_step(Draft *draft, Bytes *bytes, uint8_t *blob) {
    const int64_t *before = draft->steps ? draft->records[draft->steps - 1] : NULL;
    int64_t *f = draft->records[draft->steps];
    int64_t kind = before ? between(bytes, LOOKUP, QUANTISE) : PACK;
    for (int i = 0; i < FIELDS; i++)
        f[i] = -1;
    f[F_KIND] = kind;
    f[F_CIN] = before ? before[F_COUT] : between(bytes, 1, 40);
    f[F_HIN] = before ? before[F_HOUT] : between(bytes, 1, 20);
    f[F_WIN] = before ? before[F_WOUT] : between(bytes, 1, 20);
    f[F_COUT] = f[F_CIN], f[F_HOUT] = f[F_HIN], f[F_WOUT] = f[F_WIN];
    f[F_KH] = f[F_KW] = f[F_SY] = f[F_SX] = 1;
    f[F_TOP] = f[F_LEFT] = f[F_CHANNEL] = 0;
    f[F_ZERO] = next(bytes), f[F_OUT_ZERO] = next(bytes);
    f[F_GROUPS] = kind == DEPTHWISE ? f[F_CIN] : 1;
    if ((kind >= LOOKUP && kind <= FLOAT_CONV) || kind == LARGEST || kind == MEAN)
        window(f, bytes);
    if (kind == LOOKUP || kind == DENSE || kind == FLOAT_CONV)
        f[F_COUT] = between(bytes, 1, 40);
    weights(f, bytes, blob);
    if (kind == FLOAT_CONV)
        f[F_WEIGHTS] = 0;
    constants(draft, f, bytes, blob);
    int64_t values = in_blocks(f[F_COUT]) * f[F_HOUT] * f[F_WOUT];
    int integer = kind == LOOKUP || kind == DENSE || kind == DEPTHWISE;
    if (before)
        f[F_INPUT] = integer ? before[F_CODED] : before[F_REAL];
    if (before && f[F_COUT] == f[F_CIN] && f[F_HOUT] == f[F_HIN] && f[F_WOUT] == f[F_WIN])
        f[F_SECOND] = before[F_REAL];
    f[F_REAL] = slot_for(draft, 2 * draft->steps, values, 4);
    f[F_CODED] = slot_for(draft, 2 * draft->steps + 1, values, 1);
    draft->work += values * in_blocks(f[F_CIN]) * f[F_KH] * f[F_KW];
    draft->steps++;
}

/* What is left of the input: where, and what to write there. */
static void corrupt(Draft *draft, Bytes *bytes) {
    static const int64_t values[] = {-1, 0, 1, 7, 8, 64, 255, 256, 1023, 1 << 16, 1 << 26,
                                     INT32_MAX, INT32_MIN, (int64_t)1 << 32, INT64_MAX, INT64_MIN};
    while (bytes->size >= 3) {
        int64_t place = next(bytes) | next(bytes) << 8, choice = next(bytes);
        int64_t value = choice < 128 ? values[choice % 16] : choice - 128;
        int64_t *words = &draft->records[0][0], count = draft->steps * FIELDS;
        if (place % 8 == 0)
            words = &draft->slots[0][0], count = SLOTS * 2;
        words[place / 8 % count] = value;
        draft->corrupted = 1;
    }
}

static int64_t magnitude(int64_t value) { return value < 0 || value > 1 << 20 ? 1 << 20 : value; }

/* whether a program that was accepted is small enough to be run here */
static int small(const Draft *draft, const Program *program) {
    int64_t work = draft->work;
    for (int64_t i = 0; i < draft->steps && draft->corrupted && work <= MOST_WORK; i++) {
        const int64_t *f = draft->records[i];
        double of_step = 1;
        for (int field = F_CIN; field <= F_KW; field++)
            if (field != F_HIN && field != F_WIN)
                of_step *= (double)magnitude(f[field]);
        work = of_step > (double)MOST_WORK ? MOST_WORK + 1 : work + (int64_t)of_step;
    }
    return work <= MOST_WORK && program_bytes(program) <= MOST_MEMORY;
}

static Program *made(const Draft *draft, const uint8_t *blob, const Kernels *kernels) {
    char problem[160];
    return program_new(&draft->records[0][0], draft->steps, &draft->slots[0][0], SLOTS, blob, BLOB,
                       draft->input, draft->output, draft->result, kernels, problem);
}

static int64_t ran; /* programs that were computed */

/* the output under one instruction set, or NULL */
static float *computed(const Draft *draft, const uint8_t *blob, const char *isa, Pool *pool) {
    Program *program = made(draft, blob, kernels_for(isa));
    if (!program)
        return NULL;
    float *output = NULL;
    if (small(draft, program)) {
        float *input = malloc((size_t)draft->input * sizeof *input);
        output = calloc((size_t)draft->output, sizeof *output);
        for (int64_t i = 0; i < draft->input; i++)
            memcpy(input + i, blob + 4 * (i * 7 % FLOATS), sizeof *input);
        Call call = {program, input, output, 1};
        programs_run(pool, &call, 1, NULL);
        ran++;
        free(input);
    }
    program_free(program);
    return output;
}

static int same(const float *a, const float *b, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (memcmp(a + i, b + i, sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i])))
            return 0;
    return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Pool *pool;
    static uint8_t filled[BLOB];
    if (!pool)
        pool = pool_new(1);
    Bytes bytes = {data, size};
    Draft draft = {0};
    fill(filled, (uint32_t)next(&bytes));
    int hostile = next(&bytes) % 4 == 0;
    int64_t steps = between(&bytes, 2, MOST_STEPS);
    while (draft.steps < steps)
        draft_step(&draft, &bytes, filled);
    const int64_t *first = draft.records[0], *last = draft.records[steps - 1];
    draft.input = first[F_COUT] * first[F_HOUT] * first[F_WOUT];
    draft.output = last[F_COUT] * last[F_HOUT] * last[F_WOUT];
    draft.result = last[F_REAL];
    if (hostile)
        corrupt(&draft, &bytes);
    uint8_t *blob = malloc(BLOB); /* so that reading beyond its end is seen */
    memcpy(blob, filled, BLOB);

    const char *levels[8];
    int32_t count = kernel_levels(levels);
    float *expected = computed(&draft, blob, levels[0], pool);
    for (int32_t i = 1; i < count; i++) {
        float *output = computed(&draft, blob, levels[i], pool);
        if (!draft.corrupted && (!output != !expected ||
                                 (output && !same(output, expected, draft.output)))) {
            fprintf(stderr, "%s and %s differ\n", levels[0], levels[i]);
            abort();
        }
        free(output);
    }
    free(expected);
    free(blob);
    return 0;
}

#ifdef STANDALONE
int main(int argc, char **argv) {
    uint32_t seed = argc > 1 ? (uint32_t)atoi(argv[1]) : 0;
    int count = argc > 2 ? atoi(argv[2]) : 1000;
    for (int i = 0; i < count; i++) {
        uint8_t data[128];
        size_t size = 60 + (size_t)(i % 32);
        for (size_t n = 0; n < size; n++) {
            seed = seed * 1664525u + 1013904223u;
            data[n] = (uint8_t)(seed >> 16);
        }
        LLVMFuzzerTestOneInput(data, size);
    }
    const char *levels[8];
    int32_t sets = kernel_levels(levels);
    printf("%d programs, %lld of them valid and computed with %d instruction sets\n", count,
           (long long)(ran / sets), sets);
    return 0;
}
#endif
