/* Running: the steps of one program or several, in pieces that threads share out. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <time.h>

#include "parts.h"

enum { AT_ONCE = 4 }; /* images that are computed together */

void arena_free(Arena *arena) {
    if (arena)
        free(arena->allocated);
    free(arena);
}

static Arena *arena_new(const Program *program, int32_t threads, int32_t images) {
    Arena *arena = calloc(1, sizeof *arena);
    if (!arena)
        return NULL;
    size_t bytes = (size_t)program->arena_bytes * (size_t)images +
                   program->scratch_bytes * (size_t)threads;
    /* calloc: kernels read the unused channels of a block, and pages come when touched */
    /* and vectors may reach a little beyond the last value */
    arena->allocated = calloc(1, bytes + 128);
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

static void unpack_results(const Job *job, float *output) {
    const Layer *result = job->program->last;
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
