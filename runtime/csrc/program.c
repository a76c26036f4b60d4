/* Building: from records to steps, with all that they need copied and brought into order. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parts.h"

static void *memory_new(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, aligned(bytes ? bytes : 1)))
        return NULL;
    return memory;
}

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
    if (f[F_LEVEL] >= 0) {
        const char *names[MOST_LEVELS];
        kernel_levels(names);
        kernels = kernels_for(names[f[F_LEVEL]]);
    }
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
                    return record_bad(reader, "the input has another size");
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
static int result_fits(Program *program, char *problem) {
    for (int64_t i = 0; i < program->steps; i++)
        if (program->step[i].real == program->result)
            program->last = &program->step[i].layer;
    const Layer *layer = program->last;
    if (layer) {
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
