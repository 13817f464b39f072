/* What the guest's source files share. */
#ifndef COLO_GUEST_H
#define COLO_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

enum { PAGE = 4096, MIB = 1 << 20 };
#define GOLDEN UINT64_C(0x9e3779b97f4a7c15) /* 2^64 divided by the golden ratio */

/* One line on the console, "colo-guest: ..." in one write(). */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

/* Power off; on a host, where this program is not the first process, exit with code 1. */
_Noreturn void halt(void);
#define DIE(...) (say(__VA_ARGS__), halt())

int64_t clock_ns(clockid_t which);
int64_t now_ns(void); /* CLOCK_MONOTONIC; the guest halts where it went back */

/* The value of "--name=" on the command line, as text and as a number. */
const char *option(char **argv, const char *name, const char *otherwise);
uint64_t number(char **argv, const char *name, const char *otherwise);

static inline uint64_t mix(uint64_t x) /* the finalizer of splitmix64 */
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

_Noreturn void run_serve(char **argv);

/* Records on a disk, see disk.c: the number of the last one there; of the next one, on the disk;
 * of the last one again, once all are looked at. */
uint64_t open_disk(const char *path);
uint64_t put_on_disk(void);
uint64_t verify_disk(void);

/* Write to a disk for so long, past the page cache; how many writes a second that is. */
double write_for(const char *path, size_t bytes, bool at_random, bool synced, int64_t ns);

#endif
