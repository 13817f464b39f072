/*
 * Gives the guest's clock back the time for which a checkpoint stopped the VM.
 *
 * A VM that stands still has no time: QEMU stops its virtual clock, and under KVM it saves kvm-clock
 * and sets it back when the VM goes on.  Many checkpoints a second so take a fifth of a guest's time
 * away.  But such a stop is nobody's business: the host's time went on, and so did the world's.
 *
 * While colo says so ("keep" in the file that COLO_CLOCK names):
 *
 * - The virtual clock, which drives all of QEMU's timers and, under TCG, the guest's TSC, is put
 *   forward when the VM goes on, before its processors do.  While a VM runs, the host's clock and
 *   the virtual one are a constant apart; that constant is kept over the stop.  Both are offsets in
 *   QEMU's exported timers_state.  Where in it is not assumed: the offset is found by its value, and
 *   what is done is undone where the clock has not moved by just that.
 * - kvm-clock: what KVM_SET_CLOCK sets is put forward by the time since KVM_GET_CLOCK read it.  The
 *   TSC goes on by itself under KVM.
 *
 * At a takeover ("stopped_ns" in the file: when this host learnt that the checkpoint's VM had been
 * stopped) all of them are put forward by the time since then, and so is the TSC that KVM_SET_MSRS
 * loads.  Whatever the guest has said to anybody was said before that checkpoint's stop, as output
 * leaves only when the checkpoint that covers it is safe.  So nobody sees its time go back.
 *
 * The file is shared memory: little words that are written whole.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x6b636f6c436f6c6fULL
#define NEAR_NS 1000000          /* two reads of one clock are not further apart */
#define FORWARD_MAX_NS 30000000000LL /* more is no stop but a pause, and stays lost */
#define MSR_TSC 0x10
#define TIMERS_WORDS 16 /* offsets stand among the first words of timers_state */

struct shared {
    uint64_t magic;
    /* by colo */
    volatile uint64_t keep;       /* give back what stops take */
    volatile uint64_t stopped_ns; /* CLOCK_MONOTONIC; 0: no takeover */
    /* by this library */
    volatile uint64_t works;      /* 1: the virtual clock is kept, 2: it cannot be */
    volatile uint64_t count;      /* of stops given back */
    volatile uint64_t given_ns;
    volatile uint64_t lost_ns;    /* of stops that could not be, or were too long */
    volatile uint64_t kvm_count;  /* of settings of kvm-clock put forward */
};

typedef void handler(void *opaque, bool running, int state);

static struct shared *shared;
static int64_t *timers;
static int64_t (*virtual_clock)(void);
static int64_t (*virtual_ticks)(void);
static int (*real_ioctl)(int, unsigned long, ...);
static bool *kvm, *icount;
static bool has_run;
static int64_t apart_ns, apart_ticks; /* the host's clocks less the VM's, while it runs */
static int64_t loaded_ns, loaded_ticks; /* a moment, by both of the host's clocks */
static uint64_t saved_clock_ns; /* when kvm-clock was read */
static bool clock_taken;

static int64_t host_ns(clockid_t which)
{
    struct timespec now;

    clock_gettime(which, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int64_t host_ticks(void)
{
    uint32_t low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (int64_t)((uint64_t)high << 32 | low);
}

/* Host ticks in so many nanoseconds, by what has gone by since this library was loaded. */
static int64_t ticks_in(int64_t ns)
{
    int64_t past_ns = host_ns(CLOCK_MONOTONIC) - loaded_ns;

    return (int64_t)((__int128)ns * (host_ticks() - loaded_ticks) / (past_ns > 0 ? past_ns : 1));
}

/* Put forward by "by" what "read" returns: the one word of timers_state that is its offset. */
static bool put_forward(int64_t (*read)(void), int64_t offset, int64_t near, int64_t by)
{
    int64_t *found = NULL, before;

    for (int i = 0; i < TIMERS_WORDS; i++) {
        if (timers[i] - offset > -near && timers[i] - offset < near) {
            if (found) {
                return false;
            }
            found = &timers[i];
        }
    }
    if (!found) {
        return false;
    }
    before = read();
    __atomic_fetch_add(found, by, __ATOMIC_SEQ_CST);
    if (read() - before < by || read() - before > by + near) {
        __atomic_fetch_sub(found, by, __ATOMIC_SEQ_CST);
        return false;
    }
    return true;
}

static int64_t ns_since_takeover(void)
{
    int64_t since = host_ns(CLOCK_MONOTONIC) - (int64_t)shared->stopped_ns;

    return shared->stopped_ns && since > 0 && since < FORWARD_MAX_NS ? since : 0;
}

/* The VM goes on: its clock is enabled, its processors do not run yet. */
static void goes_on(void)
{
    int64_t ns = host_ns(CLOCK_MONOTONIC), ticks = host_ticks();
    int64_t offset_ns = virtual_clock() - ns, offset_ticks = virtual_ticks() - ticks;
    int64_t by_ns = 0, by_ticks = 0;
    bool is_takeover = !has_run && shared->stopped_ns;
    bool with_ticks = !(kvm && *kvm);

    if (is_takeover) {
        by_ns = ns_since_takeover();
        by_ticks = ticks_in(by_ns);
    } else if (has_run && shared->keep) {
        by_ns = -offset_ns - apart_ns;
        by_ticks = -offset_ticks - apart_ticks;
    }
    if (by_ns > 0) {
        bool done = by_ns < FORWARD_MAX_NS
            && (!with_ticks || put_forward(virtual_ticks, offset_ticks, ticks_in(NEAR_NS), by_ticks))
            && put_forward(virtual_clock, offset_ns, NEAR_NS, by_ns);

        shared->works = done || by_ns >= FORWARD_MAX_NS ? 1 : 2;
        if (done) {
            shared->count++;
            shared->given_ns += by_ns;
        } else {
            shared->lost_ns += by_ns;
        }
    }
    has_run = true;
    apart_ns = host_ns(CLOCK_MONOTONIC) - virtual_clock();
    apart_ticks = host_ticks() - virtual_ticks();
}

static void state_changed(void *opaque, bool running, int state)
{
    (void)opaque;
    (void)state;
    if (running) {
        goes_on();
    }
}

static void set_clock(struct kvm_clock_data *data)
{
    int64_t now = host_ns(CLOCK_MONOTONIC_RAW), by = 0;

    if (shared->stopped_ns && !clock_taken) {
        by = ns_since_takeover();
        clock_taken = true;
    } else if (shared->keep && saved_clock_ns) {
        by = now - (int64_t)saved_clock_ns;
    }
    if (by > 0 && by < FORWARD_MAX_NS) {
        data->clock += (uint64_t)by;
        shared->kvm_count++;
    }
}

/* Put the TSC of a checkpoint forward, where this loads one. */
static void set_msrs(int vcpu, struct kvm_msrs *msrs)
{
    static int64_t by_ticks;
    int64_t since = ns_since_takeover();

    if (!since || has_run) {
        return;
    }
    for (uint32_t i = 0; i < msrs->nmsrs; i++) {
        if (msrs->entries[i].index == MSR_TSC && msrs->entries[i].data) {
            if (!by_ticks) {
                int64_t khz = real_ioctl(vcpu, KVM_GET_TSC_KHZ, 0);

                by_ticks = khz > 0 ? (int64_t)((__int128)since * khz / 1000000) : 0;
            }
            msrs->entries[i].data += (uint64_t)by_ticks;
        }
    }
}

int ioctl(int file, unsigned long request, ...)
{
    va_list arguments;
    void *argument;
    int result;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    if (!real_ioctl) {
        real_ioctl = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    }
    if (shared && request == KVM_SET_CLOCK) {
        struct kvm_clock_data data = *(struct kvm_clock_data *)argument;

        set_clock(&data);
        return real_ioctl(file, request, &data);
    }
    if (shared && request == KVM_SET_MSRS) {
        set_msrs(file, argument);
    }
    result = real_ioctl(file, request, argument);
    if (shared && request == KVM_GET_CLOCK && !result) {
        saved_clock_ns = (uint64_t)host_ns(CLOCK_MONOTONIC_RAW);
    }
    return result;
}

static struct shared *open_shared(void)
{
    const char *path = getenv("COLO_CLOCK");
    struct shared *memory;
    int file;

    file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) {
        return NULL;
    }
    memory = mmap(NULL, sizeof(*memory), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return memory == MAP_FAILED || memory->magic != MAGIC ? NULL : memory;
}

__attribute__((constructor)) static void begin(void)
{
    void *(*add)(handler *, void *) =
        (void *(*)(handler *, void *))dlsym(RTLD_DEFAULT, "qemu_add_vm_change_state_handler");

    timers = dlsym(RTLD_DEFAULT, "timers_state");
    virtual_clock = (int64_t (*)(void))dlsym(RTLD_DEFAULT, "cpu_get_clock");
    virtual_ticks = (int64_t (*)(void))dlsym(RTLD_DEFAULT, "cpu_get_ticks");
    kvm = dlsym(RTLD_DEFAULT, "kvm_allowed");
    icount = dlsym(RTLD_DEFAULT, "use_icount");
    if (!add || !timers || !virtual_clock || !virtual_ticks) {
        return; /* this is no QEMU, but a program that it starts */
    }
    shared = open_shared();
    if (!shared) {
        return;
    }
    loaded_ns = host_ns(CLOCK_MONOTONIC);
    loaded_ticks = host_ticks();
    shared->works = 1;
    add(state_changed, NULL);
}
