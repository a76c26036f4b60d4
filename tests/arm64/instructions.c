/* A plugin for qemu-aarch64 that counts instructions between system calls.
 *
 * The native engine reads the clock before and behind every step when it is profiled, so the
 * counts between those calls are those of its steps. getppid begins and ends the list, which
 * goes to the file in the argument `out`, one count a line.
 *
 *     cc -shared -fPIC -o instructions.so instructions.c
 *     qemu-aarch64 -plugin instructions.so,out=FILE ... */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* Of the plugin interface, version 1, as QEMU's documentation gives it. */
typedef uint64_t plugin_id;
struct tb;
enum { ADD = 0 };
extern size_t qemu_plugin_tb_n_insns(const struct tb *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct tb *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct tb *, int operation, void *counter,
                                                     uint64_t amount);
extern void qemu_plugin_register_vcpu_syscall_cb(
    plugin_id, void (*)(plugin_id, unsigned cpu, int64_t number, uint64_t, uint64_t, uint64_t,
                        uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));

enum { CLOCK_GETTIME = 113, GETPPID = 173 };

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static uint64_t count, last;
static int listing;
static FILE *out;

static void translated(plugin_id id, struct tb *block) {
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD, &count, qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c,
                   uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
    (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number == GETPPID)
        listing = !listing;
    if (listing && number == CLOCK_GETTIME)
        fprintf(out, "%llu\n", (unsigned long long)(count - last));
    if (out)
        fflush(out);
    last = count;
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info,
                                                               int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++)
        if (strncmp(argv[i], "out=", 4) == 0)
            out = fopen(argv[i] + 4, "w");
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return out ? 0 : -1;
}
