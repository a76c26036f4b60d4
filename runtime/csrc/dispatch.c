/* Which instruction sets this machine has: the only place that knows. */
#include <string.h>

#include "program.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#define DOTPROD_BIT (1 << 20) /* HWCAP_ASIMDDP */
#endif

typedef struct {
    const Kernels *kernels;
    int here;
} Level;

static int32_t levels(Level list[MOST_LEVELS]) {
    int32_t n = 0;
    list[n++] = (Level){&kernels_portable, 1};
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2");
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
    list[n++] = (Level){&kernels_avx2, avx2};
    list[n++] = (Level){&kernels_avx512, avx2 && avx512};
#elif defined(__aarch64__)
    list[n++] = (Level){&kernels_neon, 1};
#if defined(__linux__)
    list[n++] = (Level){&kernels_neon_dotprod, (getauxval(AT_HWCAP) & DOTPROD_BIT) != 0};
#elif defined(__APPLE__)
    list[n++] = (Level){&kernels_neon_dotprod, 1};
#endif
#endif
    return n;
}

const Kernels *kernels_for(const char *isa) {
    Level list[MOST_LEVELS];
    const Kernels *found = NULL;
    int32_t n = levels(list);
    for (int32_t i = 0; i < n; i++)
        if (list[i].here && (!isa || strcmp(isa, list[i].kernels->name) == 0))
            found = list[i].kernels;
    return found;
}

int32_t kernel_levels(const char *names[MOST_LEVELS]) {
    Level list[MOST_LEVELS];
    int32_t n = levels(list), count = 0;
    for (int32_t i = 0; i < n; i++)
        if (list[i].here)
            names[count++] = list[i].kernels->name;
    return count;
}
