#define _POSIX_C_SOURCE 200809L
#include "pool.h"

#include <stdlib.h>

#if defined(_WIN32)

/* without POSIX threads the caller does everything */
struct Pool {
    int32_t threads;
};

Pool *pool_new(int32_t threads) {
    (void)threads;
    Pool *pool = malloc(sizeof *pool);
    if (pool)
        pool->threads = 1;
    return pool;
}

void pool_free(Pool *pool) { free(pool); }

int32_t pool_threads(const Pool *pool) { return pool->threads; }

void pool_run(Pool *pool, void (*work)(void *, int32_t, int32_t), void *argument,
              int32_t pieces) {
    (void)pool;
    for (int32_t piece = 0; piece < pieces; piece++)
        work(argument, piece, 0);
}

#else

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

/* A layer takes tens of microseconds, which is about what waking a thread costs: so threads
 * look for the next layer for a while before they sleep. */
enum { SPINS = 4000 };

typedef struct {
    Pool *pool;
    int32_t number;
} Worker;

struct Pool {
    int32_t threads, started;
    pid_t process; /* threads do not live on in a child */
    pthread_mutex_t busy, lock;
    pthread_cond_t wake;
    pthread_t *handles;
    Worker *workers;
    int sleeping, ending;

    atomic_uint round;     /* one more for each piece of work handed out */
    atomic_int next, idle; /* the next piece; workers that are through with the round */
    void (*work)(void *, int32_t, int32_t);
    void *argument;
    int32_t pieces;
};

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_pieces(Pool *pool, int32_t thread) {
    for (;;) {
        int32_t piece = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (piece >= pool->pieces)
            return;
        pool->work(pool->argument, piece, thread);
    }
}

static unsigned next_round(Pool *pool, unsigned seen) {
    for (int spin = 0; spin < SPINS; spin++) {
        unsigned round = atomic_load_explicit(&pool->round, memory_order_acquire);
        if (round != seen)
            return round;
        pause_briefly();
    }
    pthread_mutex_lock(&pool->lock);
    pool->sleeping++;
    unsigned round;
    while ((round = atomic_load_explicit(&pool->round, memory_order_acquire)) == seen)
        pthread_cond_wait(&pool->wake, &pool->lock);
    pool->sleeping--;
    pthread_mutex_unlock(&pool->lock);
    return round;
}

static void *worker_main(void *argument) {
    Worker *worker = argument;
    Pool *pool = worker->pool;
    unsigned seen = 0;
    for (;;) {
        seen = next_round(pool, seen);
        if (pool->ending)
            return NULL;
        take_pieces(pool, worker->number);
        atomic_fetch_add_explicit(&pool->idle, 1, memory_order_release);
    }
}

static void announce(Pool *pool) {
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add_explicit(&pool->round, 1, memory_order_release);
    if (pool->sleeping)
        pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

Pool *pool_new(int32_t threads) {
    Pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return NULL;
    pool->threads = threads;
    pool->process = getpid();
    pool->handles = calloc((size_t)threads, sizeof *pool->handles);
    pool->workers = calloc((size_t)threads, sizeof *pool->workers);
    if (!pool->handles || !pool->workers) {
        free(pool->handles);
        free(pool->workers);
        free(pool);
        return NULL;
    }
    pthread_mutex_init(&pool->busy, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    /* signals are for the program's own threads */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int32_t i = 0; i + 1 < threads; i++) {
        pool->workers[i] = (Worker){pool, i + 1};
        if (pthread_create(&pool->handles[i], NULL, worker_main, &pool->workers[i]))
            break;
        pool->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pool;
}

void pool_free(Pool *pool) {
    if (!pool)
        return;
    if (pool->process == getpid()) {
        pool->ending = 1;
        announce(pool);
        for (int32_t i = 0; i < pool->started; i++)
            pthread_join(pool->handles[i], NULL);
        pthread_cond_destroy(&pool->wake);
        pthread_mutex_destroy(&pool->lock);
        pthread_mutex_destroy(&pool->busy);
    } /* else locks may be held by threads that are not there any more */
    free(pool->handles);
    free(pool->workers);
    free(pool);
}

int32_t pool_threads(const Pool *pool) { return pool->threads; }

void pool_run(Pool *pool, void (*work)(void *, int32_t, int32_t), void *argument,
              int32_t pieces) {
    if (pieces < 2 || !pool->started || pool->process != getpid() ||
        pthread_mutex_trylock(&pool->busy)) {
        for (int32_t piece = 0; piece < pieces; piece++)
            work(argument, piece, 0);
        return;
    }
    pool->work = work;
    pool->argument = argument;
    pool->pieces = pieces;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->idle, 0, memory_order_relaxed);
    announce(pool);
    take_pieces(pool, 0);
    while (atomic_load_explicit(&pool->idle, memory_order_acquire) < pool->started)
        pause_briefly();
    pthread_mutex_unlock(&pool->busy);
}

#endif
