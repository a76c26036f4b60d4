/* Threads that wait for work, and share it out piece by piece. */
#ifndef EDGEID_POOL_H
#define EDGEID_POOL_H

#include <stdint.h>

typedef struct Pool Pool;

/* A pool in which `threads` threads work, the caller being one of them; NULL without memory.
 * Threads that cannot be started are done without. */
Pool *pool_new(int32_t threads);
void pool_free(Pool *);
int32_t pool_threads(const Pool *);

/* Calls work(argument, piece, thread) for all pieces 0..pieces - 1, thread in
 * 0..threads - 1, and comes back when all are done. Where the pool is busy with another
 * caller's work, or was made before a fork, the caller does it all, as thread 0. */
void pool_run(Pool *, void (*work)(void *, int32_t piece, int32_t thread), void *argument,
              int32_t pieces);

#endif
