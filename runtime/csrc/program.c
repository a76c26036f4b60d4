#define _POSIX_C_SOURCE 200809L
#include "program.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "steps.h"

/* Limits of what a record may say. They keep every product of sizes far below 2^63. */
enum { MAX_STEPS = 1 << 14, MAX_SLOTS = 1 << 15, MAX_SIDE = 1 << 26, MAX_KERNEL = 1024 };
#define MAX_VALUES ((int64_t)1 << 26) /* of an activation, and of unfolded windows */
#define MAX_BYTES ((int64_t)1 << 32)  /* of an arena, and of one layer's weights */

enum { AT_ONCE = 4 }; /* images that are computed together */

typedef struct {
    int64_t offset, bytes;
} Slot;

typedef struct Arena {
    struct Arena *next;
    void *allocated;
    uint8_t *memory; /* activations of all images, then scratch of every thread */
    int32_t threads, images;
} Arena;

struct Program {
    int64_t input, output, steps, slots, arena_bytes, packed_bytes;
    int32_t result;
    size_t scratch_bytes; /* of the step that needs most */
    Step *step;
    Slot *slot;
    uint8_t *constants; /* all per-channel values and codewords */
    uint8_t *packed;    /* weights in the order in which kernels read them */
    pthread_mutex_t lock;
    Arena *idle;
};

static void *memory_new(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, aligned(bytes ? bytes : 1)))
        return NULL;
    return memory;
}

/* ---- checking ---- */

typedef struct {
    const int64_t *record;
    int64_t number;
    const Slot *slots;
    int64_t slot_count;
    const uint8_t *blob;
    int64_t blob_bytes;
    char *problem;
} Reader;

static int bad(const Reader *reader, const char *what) {
    snprintf(reader->problem, 160, "step %lld: %s", (long long)reader->number, what);
    return 0;
}

static int within(int64_t value, int64_t low, int64_t high) {
    return value >= low && value <= high;
}

/* a slot that can hold so many values of `size` bytes; -1 only where that is allowed */
static int slot_fits(const Reader *reader, int field, int64_t values, int64_t size, int optional) {
    int64_t number = reader->record[field];
    if (number == -1)
        return optional || bad(reader, "a slot is missing");
    if (!within(number, 0, reader->slot_count - 1) || reader->slots[number].bytes < values * size)
        return bad(reader, "a slot is not there or too small");
    return 1;
}

static int weights_fit(const Reader *reader, int field, int64_t count, int64_t size,
                       int optional) {
    int64_t offset = reader->record[field];
    if (offset == -1)
        return optional || bad(reader, "weights are missing");
    if (!within(offset, 0, reader->blob_bytes) || offset % 8 ||
        count > (reader->blob_bytes - offset) / size)
        return bad(reader, "weights lie outside of what there is");
    return 1;
}

static int sizes_fit(const Reader *reader) {
    const int64_t *f = reader->record;
    for (int i = F_CIN; i <= F_WOUT; i++)
        if (!within(f[i], 1, MAX_SIDE))
            return bad(reader, "a size is out of range");
    if (f[F_HIN] > MAX_VALUES / f[F_WIN] || f[F_HOUT] > MAX_VALUES / f[F_WOUT] ||
        rounded_up((int32_t)f[F_CIN], BLOCK) > MAX_VALUES / (f[F_HIN] * f[F_WIN]) ||
        rounded_up((int32_t)f[F_COUT], BLOCK) > MAX_VALUES / (f[F_HOUT] * f[F_WOUT]))
        return bad(reader, "an activation is too large");
    if (!within(f[F_ZERO], 0, 255) || !within(f[F_OUT_ZERO], 0, 255))
        return bad(reader, "a zero point is out of range");
    return 1;
}

static int64_t values_in(const int64_t *f) {
    return (int64_t)blocks((int32_t)f[F_CIN]) * BLOCK * f[F_HIN] * f[F_WIN];
}

static int64_t values_out(const int64_t *f) {
    return (int64_t)blocks((int32_t)f[F_COUT]) * BLOCK * f[F_HOUT] * f[F_WOUT];
}

/* the window stays within the image and its padding, at every output */
static int window_fits(const Reader *reader) {
    const int64_t *f = reader->record;
    /* a pool may take in the whole image, and needs no room to unfold it */
    int pools = f[F_KIND] == LARGEST || f[F_KIND] == MEAN;
    for (int i = F_KH; i <= F_SX; i++)
        if (!within(f[i], 1, pools && i <= F_KW ? MAX_SIDE : MAX_KERNEL))
            return bad(reader, "a kernel or stride is out of range");
    if (!within(f[F_TOP], 0, f[F_KH] - 1) || !within(f[F_LEFT], 0, f[F_KW] - 1))
        return bad(reader, "padding is out of range");
    int64_t below = (f[F_HOUT] - 1) * f[F_SY] - f[F_TOP];
    int64_t right = (f[F_WOUT] - 1) * f[F_SX] - f[F_LEFT];
    if (below >= f[F_HIN] || right >= f[F_WIN])
        return bad(reader, "windows lie outside of the image");
    int64_t taps = f[F_KH] * f[F_KW];
    if ((pools ? values_out(f) : values_in(f)) > MAX_VALUES * 8 / taps)
        return bad(reader, "the window is too large for the image");
    return 1;
}

static int has_epilogue(int64_t kind) {
    return within(kind, LOOKUP, PRODUCT);
}

static int channels_fit(const Reader *reader) {
    int64_t cout = reader->record[F_COUT];
    int none = !has_epilogue(reader->record[F_KIND]);
    return weights_fit(reader, F_GAIN, cout, 4, none) &&
           weights_fit(reader, F_BIAS, cout, 4, none) &&
           weights_fit(reader, F_SLOPE1, cout, 4, 1) && weights_fit(reader, F_SLOPE2, cout, 4, 1);
}

static int lookup_fits(const Reader *reader) {
    const int64_t *f = reader->record;
    int64_t k = f[F_COUNT], r = f[F_LENGTH], taps = f[F_KH] * f[F_KW];
    if ((k != 16 && k != 32 && k != 64 && k != 256) || (r != 4 && r != 8))
        return bad(reader, "no such codebook");
    if (f[F_SPACES] != (f[F_CIN] + r - 1) / r || taps > MAX_SUM / 4 || f[F_KW] > 32)
        return bad(reader, "codebook and convolution do not fit together");
    int64_t bits = k == 16 ? 4 : k == 32 ? 5 : k == 64 ? 6 : 8;
    int64_t indices = f[F_SPACES] * taps * f[F_COUT];
    if (indices > MAX_BYTES)
        return bad(reader, "too many weights");
    int64_t offset = f[F_MULTIPLIERS];
    if (!weights_fit(reader, F_CODEWORDS, f[F_SPACES] * k * r, 1, 0) ||
        !weights_fit(reader, F_MULTIPLIERS, f[F_SPACES], 2, 0) ||
        !weights_fit(reader, F_INDICES, (indices * bits + 7) / 8, 1, 0))
        return 0;
    for (int64_t i = 0; i < f[F_SPACES]; i++) {
        int16_t m;
        memcpy(&m, reader->blob + offset + 2 * i, 2);
        if (m < 1)
            return bad(reader, "a multiplier is not positive");
    }
    return 1;
}

static int conv_fits(const Reader *reader) {
    const int64_t *f = reader->record;
    int64_t taps = f[F_KH] * f[F_KW];
    int integer = f[F_KIND] != FLOAT_CONV;
    int64_t groups = f[F_GROUPS];
    if (!within(groups, 1, f[F_CIN]) || f[F_CIN] % groups || f[F_COUT] % groups ||
        (f[F_KIND] == DEPTHWISE && (groups != f[F_CIN] || groups != f[F_COUT])) ||
        ((f[F_KIND] == LOOKUP || f[F_KIND] == DENSE) && groups != 1))
        return bad(reader, "groups do not fit the channels");
    int64_t products = f[F_CIN] / groups * taps;
    int64_t outputs = rounded_up((int32_t)f[F_COUT], CHANNEL_ROUND) + groups * BLOCK;
    if (products > MAX_BYTES / 4 / outputs || (integer && products > INT32_MAX / (255 * 127)))
        return bad(reader, "too many weights");
    if (!slot_fits(reader, F_INPUT, values_in(f), integer ? 1 : 4, 0) ||
        !slot_fits(reader, F_SECOND, values_out(f), 4, 1) ||
        !slot_fits(reader, F_REAL, values_out(f), 4, integer) ||
        !slot_fits(reader, F_CODED, values_out(f), 1, 1))
        return 0;
    if (f[F_KIND] == LOOKUP)
        return lookup_fits(reader);
    return weights_fit(reader, F_WEIGHTS, f[F_COUT] * products, integer ? 1 : 4, 0);
}

/* the other steps: what they read and write has the sizes that the record says */
static int plain_fits(const Reader *reader) {
    const int64_t *f = reader->record;
    int same_area = f[F_HIN] == f[F_HOUT] && f[F_WIN] == f[F_WOUT];
    int same = same_area && f[F_CIN] == f[F_COUT];
    int64_t kind = f[F_KIND];
    if (kind == PACK)
        return (same || bad(reader, "sizes differ")) &&
               slot_fits(reader, F_REAL, values_out(f), 4, 1) &&
               slot_fits(reader, F_CODED, values_out(f), 1, 1);
    if (!slot_fits(reader, F_INPUT, values_in(f), 4, 0))
        return 0;
    if (kind == QUANTISE)
        return (same || bad(reader, "sizes differ")) &&
               slot_fits(reader, F_CODED, values_out(f), 1, 0);
    if (!slot_fits(reader, F_REAL, values_out(f), 4, 0))
        return 0;
    if (kind == SUM || kind == PRODUCT)
        return (same || bad(reader, "sizes differ")) &&
               slot_fits(reader, F_SECOND, values_out(f), 4, 1);
    if (kind == LARGEST || kind == MEAN)
        return (f[F_CIN] == f[F_COUT] || bad(reader, "sizes differ")) && window_fits(reader);
    if (kind == JOIN)
        return (same_area && within(f[F_CHANNEL], 0, f[F_COUT] - f[F_CIN])) ||
               bad(reader, "a part lies outside of the whole");
    if (kind == RESHAPE)
        return f[F_CIN] * f[F_HIN] * f[F_WIN] == f[F_COUT] * f[F_HOUT] * f[F_WOUT] ||
               bad(reader, "sizes differ");
    return same || bad(reader, "sizes differ"); /* NORMALISE */
}

static int record_fits(const Reader *reader) {
    int64_t kind = reader->record[F_KIND];
    if (!within(kind, 0, KINDS - 1))
        return bad(reader, "no such kind");
    for (int field = F_INPUT; field <= F_CODED; field++)
        if (!within(reader->record[field], -1, reader->slot_count - 1))
            return bad(reader, "there is no such slot");
    if (!sizes_fit(reader) || !weights_fit(reader, F_CONSTANTS, 6, 4, 0) || !channels_fit(reader))
        return 0;
    if (kind == LOOKUP || kind == DENSE || kind == DEPTHWISE || kind == FLOAT_CONV)
        return window_fits(reader) && conv_fits(reader);
    return plain_fits(reader);
}

/* ---- building ---- */

/* Hands out parts of one piece of memory; with no memory it only counts. */
typedef struct {
    uint8_t *memory;
    size_t used;
} Heap;

static void *take(Heap *heap, size_t bytes) {
    void *part = heap->memory ? heap->memory + heap->used : NULL;
    heap->used += aligned(bytes);
    return part;
}

/* a copy of per-channel values, with zeros up to CHANNEL_ROUND */
static const float *channels(const Reader *reader, int field, Heap *heap) {
    int64_t offset = reader->record[field], count = reader->record[F_COUT];
    if (offset < 0)
        return NULL;
    size_t padded = (size_t)rounded_up((int32_t)count, CHANNEL_ROUND) * sizeof(float);
    float *copy = take(heap, padded);
    if (copy) {
        memset(copy, 0, padded);
        memcpy(copy, reader->blob + offset, (size_t)count * sizeof(float));
    }
    return copy;
}

static const void *copied(const Reader *reader, int field, size_t bytes, Heap *heap) {
    void *copy = take(heap, bytes);
    if (copy)
        memcpy(copy, reader->blob + reader->record[field], bytes);
    return copy;
}

static Activation activation(const float *slope, const float *limits) {
    Activation a = {slope, limits[0], limits[1], 0};
    a.clips = limits[0] > -3.4e38f || limits[1] < 3.4e38f;
    return a;
}

static size_t float_packed_bytes(const Step *step) {
    const Layer *layer = &step->layer;
    return (size_t)layer->cin * layer->kh * layer->kw *
           rounded_up(layer->cout / step->groups, BLOCK) * sizeof(float);
}

static void float_pack(const Step *step, const uint8_t *weights, float *packed) {
    const Layer *layer = &step->layer;
    size_t taps = (size_t)layer->kh * layer->kw, cin = (size_t)(layer->cin / step->groups);
    size_t outputs = (size_t)(layer->cout / step->groups);
    size_t width = (size_t)rounded_up((int32_t)outputs, BLOCK);
    memset(packed, 0, float_packed_bytes(step));
    for (size_t o = 0; o < (size_t)layer->cout; o++)
        for (size_t i = 0; i < cin * taps; i++)
            memcpy(&packed[(o / outputs * cin * taps + i) * width + o % outputs],
                   weights + (o * cin * taps + i) * sizeof(float), sizeof(float));
}

/* Everything about a step but its packed weights. Called once to count, once to copy. */
static void step_read(const Reader *reader, const Kernels *kernels, Step *step, Heap *heap) {
    const int64_t *f = reader->record;
    Layer *layer = &step->layer;
    memset(step, 0, sizeof *step);
    step->kind = (int32_t)f[F_KIND];
    step->groups = (int32_t)f[F_GROUPS];
    step->channel = (int32_t)f[F_CHANNEL];
    step->input = (int32_t)f[F_INPUT], step->second = (int32_t)f[F_SECOND];
    step->real = (int32_t)f[F_REAL], step->coded = (int32_t)f[F_CODED];
    layer->cin = (int32_t)f[F_CIN], layer->hin = (int32_t)f[F_HIN], layer->win = (int32_t)f[F_WIN];
    layer->cout = (int32_t)f[F_COUT];
    layer->hout = (int32_t)f[F_HOUT], layer->wout = (int32_t)f[F_WOUT];
    layer->kh = (int32_t)f[F_KH], layer->kw = (int32_t)f[F_KW];
    layer->sy = (int32_t)f[F_SY], layer->sx = (int32_t)f[F_SX];
    layer->top = (int32_t)f[F_TOP], layer->left = (int32_t)f[F_LEFT];
    layer->zero = (int32_t)f[F_ZERO], layer->out_zero = (int32_t)f[F_OUT_ZERO];
    layer->depthwise = step->kind == DEPTHWISE;
    float constants[6];
    memcpy(constants, reader->blob + f[F_CONSTANTS], sizeof constants);
    layer->out_inverse = constants[4];
    step->eps = constants[5];
    layer->first = activation(channels(reader, F_SLOPE1, heap), constants);
    layer->second = activation(channels(reader, F_SLOPE2, heap), constants + 2);
    layer->gain = channels(reader, F_GAIN, heap);
    layer->bias = channels(reader, F_BIAS, heap);
    if (step->kind == LOOKUP) {
        layer->count = (int32_t)f[F_COUNT], layer->length = (int32_t)f[F_LENGTH];
        layer->spaces = (int32_t)f[F_SPACES];
        layer->shift = layer->length == 8 ? 3 : layer->length == 4 ? 2 : 1;
        size_t codewords = (size_t)layer->spaces * layer->count * layer->length;
        layer->codewords = copied(reader, F_CODEWORDS, codewords, heap);
        layer->multipliers = copied(reader, F_MULTIPLIERS, (size_t)layer->spaces * 2, heap);
        step->kernel = &kernels->lookup;
    }
    if (step->kind == DENSE)
        step->kernel = &kernels->dense;
    if (step->kind == DEPTHWISE)
        step->kernel = &kernels->depthwise;
    if (step->kernel) {
        step->tile_rows = at_most(at_least(step->kernel->rows(layer), 1), layer->hout);
        step->scratch_bytes = step->kernel->scratch_bytes(layer, step->tile_rows);
    }
}

static void weights_pack(const Reader *reader, Step *step, Heap *heap) {
    const int64_t *f = reader->record;
    Layer *layer = &step->layer;
    if (step->kernel) {
        Weights weights = {NULL, 0, NULL};
        if (step->kind == LOOKUP) {
            weights.indices = reader->blob + f[F_INDICES];
            weights.bits = layer->count == 16 ? 4 : layer->count == 32 ? 5 : layer->count == 64 ? 6 : 8;
        } else {
            weights.dense = (const int8_t *)reader->blob + f[F_WEIGHTS];
        }
        layer->packed = take(heap, step->kernel->packed_bytes(layer));
        if (layer->packed)
            step->kernel->pack(layer, &weights, layer->packed);
    } else if (step->kind == FLOAT_CONV) {
        layer->packed = take(heap, float_packed_bytes(step));
        if (layer->packed)
            float_pack(step, reader->blob + f[F_WEIGHTS], (float *)layer->packed);
    }
}

static int slots_fit(Program *program, const int64_t *slots, char *problem) {
    for (int64_t i = 0; i < program->slots; i++) {
        Slot slot = {slots[2 * i], slots[2 * i + 1]};
        if (!within(slot.offset, 0, MAX_BYTES) || !within(slot.bytes, 0, MAX_BYTES) ||
            slot.offset % 64 || slot.bytes % 64) {
            snprintf(problem, 160, "slot %lld is not valid", (long long)i);
            return 0;
        }
        program->slot[i] = slot;
        if (slot.offset + slot.bytes > program->arena_bytes)
            program->arena_bytes = slot.offset + slot.bytes;
    }
    return 1;
}

/* checks, counts, then copies: three walks over the records */
static int build(Program *program, Reader *reader, const int64_t *records,
                 const Kernels *kernels) {
    Heap constants = {NULL, 0}, packed = {NULL, 0};
    for (int walk = 0; walk < 3; walk++) {
        for (int64_t i = 0; i < program->steps; i++) {
            reader->record = records + i * FIELDS;
            reader->number = i;
            Step *step = &program->step[i];
            if (walk == 0) {
                if (!record_fits(reader))
                    return 0;
                if (reader->record[F_KIND] == PACK &&
                    reader->record[F_CIN] * reader->record[F_HIN] * reader->record[F_WIN] !=
                        program->input)
                    return bad(reader, "the input has another size");
                continue;
            }
            step_read(reader, kernels, step, &constants);
            weights_pack(reader, step, &packed);
            if (step->scratch_bytes > program->scratch_bytes)
                program->scratch_bytes = aligned(step->scratch_bytes);
        }
        if (walk == 1) {
            program->packed_bytes = (int64_t)packed.used;
            constants = (Heap){program->constants = memory_new(constants.used), 0};
            packed = (Heap){program->packed = memory_new(packed.used), 0};
            if (!program->constants || !program->packed) {
                snprintf(reader->problem, 160, "out of memory");
                return 0;
            }
        }
    }
    return 1;
}

/* the output is the last thing written to its slot, and has its size */
static int result_fits(const Program *program, char *problem) {
    const Step *last = NULL;
    for (int64_t i = 0; i < program->steps; i++)
        if (program->step[i].real == program->result)
            last = &program->step[i];
    if (last) {
        const Layer *layer = &last->layer;
        int64_t area = (int64_t)layer->hout * layer->wout;
        if (layer->cout * area == program->output &&
            program->slot[program->result].bytes >= blocks(layer->cout) * BLOCK * area * 4)
            return 1;
    }
    snprintf(problem, 160, "no step writes an output of %lld values", (long long)program->output);
    return 0;
}

Program *program_new(const int64_t *records, int64_t steps, const int64_t *slots,
                     int64_t slot_count, const uint8_t *blob, int64_t blob_bytes, int64_t input,
                     int64_t output, int64_t result, const Kernels *kernels, char problem[160]) {
    if (!within(steps, 1, MAX_STEPS) || !within(slot_count, 1, MAX_SLOTS) ||
        !within(input, 1, MAX_VALUES) || !within(output, 1, MAX_VALUES) ||
        !within(result, 0, slot_count - 1)) {
        snprintf(problem, 160, "steps, slots, input or output are out of range");
        return NULL;
    }
    Program *program = calloc(1, sizeof *program);
    if (program) {
        program->step = calloc((size_t)steps, sizeof *program->step);
        program->slot = calloc((size_t)slot_count, sizeof *program->slot);
        pthread_mutex_init(&program->lock, NULL);
    }
    if (!program || !program->step || !program->slot) {
        snprintf(problem, 160, "out of memory");
        program_free(program);
        return NULL;
    }
    program->input = input, program->output = output, program->result = (int32_t)result;
    program->steps = steps, program->slots = slot_count;
    Reader reader = {records, 0, program->slot, slot_count, blob, blob_bytes, problem};
    if (!slots_fit(program, slots, problem) || !build(program, &reader, records, kernels) ||
        !result_fits(program, problem)) {
        program_free(program);
        return NULL;
    }
    return program;
}

static void arena_free(Arena *arena) {
    if (arena)
        free(arena->allocated);
    free(arena);
}

void program_free(Program *program) {
    if (!program)
        return;
    while (program->idle) {
        Arena *arena = program->idle;
        program->idle = arena->next;
        arena_free(arena);
    }
    pthread_mutex_destroy(&program->lock);
    free(program->step);
    free(program->slot);
    free(program->constants);
    free(program->packed);
    free(program);
}

int64_t program_input(const Program *program) { return program->input; }
int64_t program_output(const Program *program) { return program->output; }
int64_t program_steps(const Program *program) { return program->steps; }
int64_t program_bytes(const Program *program) {
    return program->packed_bytes + program->arena_bytes + (int64_t)program->scratch_bytes;
}

/* ---- running ---- */

static Arena *arena_new(const Program *program, int32_t threads, int32_t images) {
    Arena *arena = calloc(1, sizeof *arena);
    if (!arena)
        return NULL;
    size_t bytes = (size_t)program->arena_bytes * (size_t)images +
                   program->scratch_bytes * (size_t)threads;
    /* calloc: kernels read the unused channels of a block, and pages come when touched */
    arena->allocated = calloc(1, bytes + 64);
    if (!arena->allocated) {
        free(arena);
        return NULL;
    }
    arena->memory = (uint8_t *)(((uintptr_t)arena->allocated + 63) & ~(uintptr_t)63);
    arena->threads = threads, arena->images = images;
    return arena;
}

/* one that is not in use, or a new one: many threads may run a program at once */
static Arena *arena_take(Program *program, int32_t threads, int32_t images) {
    Arena *arena = NULL;
    /* tried only: in a forked child the lock may be held by a thread that is not there */
    if (!pthread_mutex_trylock(&program->lock)) {
        arena = program->idle;
        if (arena)
            program->idle = arena->next;
        pthread_mutex_unlock(&program->lock);
    }
    if (arena && arena->threads >= threads && arena->images >= images)
        return arena;
    arena_free(arena);
    return arena_new(program, threads, images);
}

static void arena_give(Program *program, Arena *arena) {
    if (pthread_mutex_trylock(&program->lock)) {
        arena_free(arena);
        return;
    }
    arena->next = program->idle;
    program->idle = arena;
    pthread_mutex_unlock(&program->lock);
}

/* One step of one program: its images, each in tiles. */
typedef struct {
    const Program *program;
    const Step *step;
    const Arena *arena;
    const float *input;
    int32_t images, tiles, tile_rows;
} Job;

/* Slots lie as planned for one image, each as many times as large as there are images. */
static uint8_t *slot_of(const Job *job, int32_t number, int32_t image) {
    if (number < 0)
        return NULL;
    Slot slot = job->program->slot[number];
    return job->arena->memory + slot.offset * job->images + slot.bytes * image;
}

static void run_piece(const Job *job, int32_t piece, int32_t thread) {
    const Step *step = job->step;
    int32_t image = piece / job->tiles;
    if (!step->kernel) {
        Image at = {job->input + (size_t)image * job->program->input,
                    (const float *)slot_of(job, step->input, image),
                    (const float *)slot_of(job, step->second, image),
                    NULL,
                    (float *)slot_of(job, step->real, image),
                    slot_of(job, step->coded, image)};
        step_plain(step, &at);
        return;
    }
    int32_t y0 = piece % job->tiles * job->tile_rows;
    Tile tile = {slot_of(job, step->input, image),
                 (const float *)slot_of(job, step->second, image),
                 (float *)slot_of(job, step->real, image),
                 slot_of(job, step->coded, image),
                 y0, at_most(y0 + job->tile_rows, step->layer.hout)};
    uint8_t *scratch = job->arena->memory + job->program->arena_bytes * job->arena->images +
                       job->program->scratch_bytes * (size_t)thread;
    step->kernel->run(&step->layer, &tile, scratch);
}

/* Steps of several programs that are computed side by side. */
typedef struct {
    Job job[MOST_TOGETHER];
    int32_t jobs;
} Round;

static void run_round_piece(void *argument, int32_t piece, int32_t thread) {
    const Round *round = argument;
    for (int32_t i = 0; i < round->jobs; i++) {
        const Job *job = &round->job[i];
        int32_t pieces = job->images * job->tiles;
        if (piece < pieces) {
            run_piece(job, piece, thread);
            return;
        }
        piece -= pieces;
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* as few tiles as the kernel likes, but enough for its share of the threads */
static void cut_into_tiles(Job *job, int32_t threads) {
    const Step *step = job->step;
    job->tiles = 1;
    if (!step->kernel)
        return;
    int32_t each = (threads + job->images - 1) / job->images;
    int32_t share = (step->layer.hout + each - 1) / each;
    job->tile_rows = at_most(step->tile_rows, share);
    job->tiles = (step->layer.hout + job->tile_rows - 1) / job->tile_rows;
}

/* Steps number 0 of all, then number 1 and so on: a wait for all threads serves every program. */
static void run_steps(Pool *pool, const Job *jobs, int32_t count, double *seconds) {
    int64_t longest = 0;
    for (int32_t i = 0; i < count; i++)
        if (jobs[i].program->steps > longest)
            longest = jobs[i].program->steps;
    for (int64_t number = 0; number < longest; number++) {
        double start = seconds ? now() : 0;
        Round round;
        int32_t pieces = 0;
        round.jobs = 0;
        for (int32_t i = 0; i < count; i++) {
            if (number >= jobs[i].program->steps)
                continue;
            Job *job = &round.job[round.jobs++];
            *job = jobs[i];
            job->step = &job->program->step[number];
            cut_into_tiles(job, (pool_threads(pool) + count - 1) / count);
            pieces += job->images * job->tiles;
        }
        pool_run(pool, run_round_piece, &round, pieces);
        if (seconds)
            seconds[number] += now() - start;
    }
}

static const Layer *result_layer(const Program *program) {
    const Layer *layer = NULL;
    for (int64_t i = 0; i < program->steps; i++)
        if (program->step[i].real == program->result)
            layer = &program->step[i].layer;
    return layer;
}

static void unpack_results(const Job *job, float *output) {
    const Layer *result = result_layer(job->program);
    for (int32_t i = 0; i < job->images; i++)
        step_unpack(result, (const float *)slot_of(job, job->program->result, i),
                    output + i * job->program->output);
}

/* At most AT_ONCE images of every program at a time. */
static void run_calls(Pool *pool, const Call *calls, int32_t count, Arena *const *arenas,
                      double *seconds) {
    int64_t most = 0;
    for (int32_t i = 0; i < count; i++)
        if (calls[i].count > most)
            most = calls[i].count;
    for (int64_t first = 0; first < most; first += AT_ONCE) {
        Job jobs[MOST_TOGETHER];
        float *outputs[MOST_TOGETHER];
        int32_t n = 0;
        for (int32_t i = 0; i < count; i++) {
            const Call *call = &calls[i];
            if (first >= call->count)
                continue;
            int64_t left = call->count - first;
            int32_t images = (int32_t)(left < AT_ONCE ? left : AT_ONCE);
            const float *input = call->input + first * call->program->input;
            outputs[n] = call->output + first * call->program->output;
            jobs[n++] = (Job){call->program, NULL, arenas[i], input, images, 1, 0};
        }
        run_steps(pool, jobs, n, seconds);
        for (int32_t i = 0; i < n; i++)
            unpack_results(&jobs[i], outputs[i]);
    }
}

int programs_run(Pool *pool, const Call *calls, int32_t count, double *seconds) {
    Arena *arenas[MOST_TOGETHER] = {NULL};
    int failed = 0;
    for (int32_t i = 0; i < count && !failed; i++) {
        int32_t images = (int32_t)(calls[i].count < AT_ONCE ? calls[i].count : AT_ONCE);
        arenas[i] = arena_take(calls[i].program, pool_threads(pool), at_least(images, 1));
        failed = !arenas[i];
    }
    if (!failed)
        run_calls(pool, calls, count, arenas, seconds);
    for (int32_t i = 0; i < count; i++)
        if (arenas[i])
            arena_give(calls[i].program, arenas[i]);
    return failed ? -1 : 0;
}
