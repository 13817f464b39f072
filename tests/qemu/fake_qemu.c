/* As much of a QEMU as clock_preload.c looks for: a virtual clock that stops with the VM, and KVM's
 * clock that is read then and written when the VM goes on.  Names are QEMU's own.
 *
 * fake_qemu checkpoint   COLO stops the VM, by a thread of its own
 *           user         somebody stops it, by the main thread
 *           takeover     it is loaded
 *
 * Says "ready", waits for a line, does so, and prints "<ns> <ns>": how far the virtual clock has
 * fallen behind the host's, and what was added to KVM's. */
#define _GNU_SOURCE
#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

struct timers {
    int64_t ticks_prev, ticks_offset;
    uint32_t sequence, lock;
    int16_t enabled, dirty;
    int64_t other[3], clock_offset;
} timers_state;
int use_icount;
static bool colo;
static void (*notify)(void *, bool, int);
static void *opaque;

bool migration_in_colo_state(void)
{
    return colo;
}

static int64_t host_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int64_t cpu_get_clock(void)
{
    return timers_state.clock_offset + (timers_state.enabled ? host_ns() : 0);
}

void cpu_enable_ticks(void)
{
    timers_state.ticks_offset -= (int64_t)__rdtsc();
    timers_state.clock_offset -= host_ns();
    timers_state.enabled = 1;
}

void qemu_add_vm_change_state_handler_prio(void (*handler)(void *, bool, int), void *data, int prio)
{
    (void)prio;
    notify = handler;
    opaque = data;
}

/* With the type that QEMU has the number in, on a file that there is not. */
static void kvm_clock(int number, struct kvm_clock_data *data)
{
    ioctl(-1, number, data);
}

static void stop(void)
{
    timers_state.clock_offset = cpu_get_clock();
    timers_state.ticks_offset += (int64_t)__rdtsc();
    timers_state.enabled = 0;
    notify(opaque, false, 0);
}

static void go_on(struct kvm_clock_data *data)
{
    cpu_enable_ticks();
    notify(opaque, true, 0);
    kvm_clock((int)KVM_SET_CLOCK, data);
}

static void *stand_still(void *data)
{
    stop();
    kvm_clock((int)KVM_GET_CLOCK, data);
    usleep(1000);
    go_on(data);
    return NULL;
}

int main(int argc, char **argv)
{
    struct kvm_clock_data data = {0};
    int64_t offset = 0;
    pthread_t thread;

    bool loaded = argc > 1 && strcmp(argv[1], "takeover") == 0;

    if (argc < 2 || !notify) {
        return 1;
    }
    if (!loaded) {
        cpu_enable_ticks();
        notify(opaque, true, 0);
        offset = timers_state.clock_offset;
        colo = true;
    }
    puts("ready");
    fflush(stdout);
    getchar();
    if (loaded) {
        offset = -host_ns();
        go_on(&data);
    } else if (strcmp(argv[1], "user") == 0) {
        stand_still(&data);
    } else {
        pthread_create(&thread, NULL, stand_still, &data);
        pthread_join(thread, NULL);
    }
    printf("%lld %lld\n", (long long)(offset - timers_state.clock_offset), (long long)data.clock);
    fflush(stdout);
    getchar();
    return 0;
}
