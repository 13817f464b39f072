/*
 * Gives a guest the time back that its VM stood still for COLO's checkpoints.
 *
 * QEMU stops the virtual clock of a VM that stands still, and under KVM kvm-clock with it: each
 * checkpoint costs the guest as much of its time as it lasts.  The time is given back when the VM
 * goes on, after QEMU has started its clocks and before any vCPU runs.  So within a stop nothing
 * moves, the state that a checkpoint holds is the stopped VM's, and no clock ever goes back.
 *
 * - Virtual clock (all that QEMU itself emulates: HPET, ACPI timer, PIT, the TSC under TCG).  While it
 *   runs, it is the host's clock plus an offset.  A stop that COLO made or ended has that offset put
 *   back to what it was before: exact, whatever the stop took.  The same for the ticks.
 * - kvm-clock.  QEMU reads it when the VM stops, and again when it saves the VM's state
 *   (KVM_GET_CLOCK), and writes that when the VM goes on (KVM_SET_CLOCK): the time since the last
 *   reading is added.  The TSC runs on by itself under KVM.
 * - A takeover.  Here the clocks are loaded.  colo says since when, by this host's own clock, it knew
 *   the VM to stand still for that checkpoint, and its state to be saved; what passed since is added,
 *   to the TSC as well, which is loaded by KVM_SET_MSRS: the same for each vCPU.  Whatever had left
 *   the VM before was covered by that checkpoint or an older one, and so was said by clocks that had
 *   not got further than the loaded ones: to nobody outside do they go back.
 *
 * What is not given back: a stop that a user both made and ended, anything with -icount, and more than
 * GIVE_MOST_NS at once.  COLO stops and starts its VM in a thread of its own, a user's commands come in
 * the main one; so do colo's, which says of its own stop that it is one.
 *
 * The offsets are fields of QEMU's timers_state, which it exports with its functions for its own
 * modules.  Where they lie in it is found, not assumed: before main() QEMU's own code starts the
 * clocks once, which shows in just two words; each is tried by what cpu_get_clock() makes of it; and
 * then all is put back as it was.  At each start it is verified again.
 *
 * colo reads what was done, and says since when a VM stood still, in memory that is shared by a
 * memfd of this process.
 *
 * And, as all ioctls pass here: what a guest takes from its taps (TUNSETOFFLOAD) is noted.  Several
 * QEMUs of a VM have the same tap, and the last one to set it has set it for all.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define MEMFD_NAME "colo-guest-clock"
#define MAGIC 0x314b4c434f4c4f43 /* "COLOCLK1" */
#define GIVE_MOST_NS (24LL * 3600 * 1000000000) /* a longer stop is no checkpoint's */
#define FIRST (-100) /* before all of QEMU's own handlers when the VM goes on */
#define WORDS_MOST 64
#define VCPUS_MOST 1024
#define MSR_TSC 0x10
#define TAPS_MOST 64

enum { KEEPS = 0, NOT_EXPORTED = 1, NOT_FOUND = 2, MOVED = 3, ICOUNT = 4 };

/* Read and written by colo as well: qemu/guest_clock.py has the same. */
struct shared {
    int64_t magic;
    int64_t trouble;
    int64_t count;
    int64_t given_ns;
    int64_t last_ns;
    int64_t kvm_clocks;
    int64_t stood_since_ns; /* colo: what is loaded stands still since then; 0: no takeover */
    int64_t saved_since_ns; /* colo: and its state is saved since then */
    int64_t stop_is_ours; /* colo: the next stop is for the first copy */
    int64_t tap_offloads[TAPS_MOST]; /* by descriptor: what it was set to, plus 1; 0: never */
};

typedef void state_handler(void *opaque, bool running, int state);

static struct shared own, *shared = &own;
static bool (*in_colo)(void);
static int64_t (*get_clock)(void);
static int *icount;
static int64_t *clock_offset, *ticks_offset;
static int64_t clock_ran, ticks_ran; /* the offsets that the VM last ran with */
static bool has_run, stopped_by_colo;
static int64_t born_ns, born_ticks;
static int64_t kvm_read_ns; /* when kvm-clock was last read */
static int64_t kvm_since_ns; /* what is written to it now is of that moment; 0: leave it */
static int vcpus[VCPUS_MOST];
static unsigned loaded_vcpus;
static int64_t loaded_ns; /* what the TSCs were given */

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int64_t within(int64_t ns)
{
    return ns < 0 ? 0 : ns > GIVE_MOST_NS ? GIVE_MOST_NS : ns;
}

static int64_t in_ticks(int64_t ns)
{
    return (int64_t)((double)ns * (double)((int64_t)__rdtsc() - born_ticks)
                     / (double)(now_ns() - born_ns));
}

/* -- the virtual clock ------------------------------------------------------------------- */

/* Whether cpu_get_clock() is still the host's clock plus what we take for the offset. */
static bool as_verified(void)
{
    int64_t before = now_ns(), clock = get_clock() - *clock_offset;

    return before <= clock && clock <= now_ns();
}

static void give(int64_t ns, int64_t ticks)
{
    if (ns <= 0) {
        return;
    }
    /* A reader outside the lock sees the one or the other: each is a time that the clock had. */
    __atomic_store_n(clock_offset, *clock_offset + ns, __ATOMIC_SEQ_CST);
    if (ticks > 0) {
        __atomic_store_n(ticks_offset, *ticks_offset + ticks, __ATOMIC_SEQ_CST);
    }
    shared->count++;
    shared->last_ns = ns;
    shared->given_ns += ns;
}

static void goes_on(bool by_colo)
{
    int64_t since = shared->stood_since_ns;

    kvm_since_ns = 0;
    shared->trouble = *icount ? ICOUNT : as_verified() ? KEEPS : MOVED;
    if (shared->trouble != KEEPS) {
        return;
    }
    if (since) {
        int64_t ns = within(now_ns() - since);

        give(ns, in_ticks(ns));
        kvm_since_ns = shared->saved_since_ns;
        shared->stood_since_ns = 0;
    } else if (by_colo && has_run) {
        int64_t stood = clock_ran - *clock_offset, ns = within(stood);

        give(ns, ns == stood ? ticks_ran - *ticks_offset : in_ticks(ns));
        kvm_since_ns = kvm_read_ns;
    }
    clock_ran = *clock_offset;
    ticks_ran = *ticks_offset;
    has_run = true;
}

/* Whether it is COLO itself that stops the VM just now, or has it go on. */
static bool by_colo_itself(void)
{
    return in_colo() && syscall(SYS_gettid) != getpid();
}

static void changed(void *opaque, bool running, int state)
{
    (void)opaque;
    (void)state;
    if (running) {
        goes_on(stopped_by_colo || by_colo_itself());
        stopped_by_colo = false;
    } else {
        stopped_by_colo = by_colo_itself() || shared->stop_is_ours;
        shared->stop_is_ours = 0;
    }
}

/* Find the two offsets in timers_state.  Nothing of QEMU has run yet, so all may be put back. */
static bool find_offsets(int64_t *timers, size_t words)
{
    void (*start)(void) = dlsym(RTLD_DEFAULT, "cpu_enable_ticks");
    int64_t kept[WORDS_MOST], started[WORDS_MOST];
    const int64_t probe = 0x123456789abcdef;
    int64_t ticks_before, ticks_after;

    if (!start || words > WORDS_MOST) {
        return false;
    }
    memcpy(kept, timers, words * sizeof *timers);
    ticks_before = (int64_t)__rdtsc();
    start();
    ticks_after = (int64_t)__rdtsc();
    memcpy(started, timers, words * sizeof *timers);
    memcpy(timers, kept, words * sizeof *timers);
    for (size_t i = 0; i < words; i++) {
        if (kept[i] != 0 || started[i] > -(1LL << 32)) {
            continue; /* a flag, a lock, or not touched */
        }
        timers[i] = probe;
        if (get_clock() == probe && !clock_offset) {
            clock_offset = &timers[i];
        } else if (ticks_before <= -started[i] && -started[i] <= ticks_after && !ticks_offset) {
            ticks_offset = &timers[i];
        } else {
            clock_offset = ticks_offset = NULL;
            words = 0;
        }
        timers[i] = kept[i];
    }
    return clock_offset && ticks_offset && get_clock() == 0;
}

static int64_t settle(void)
{
    void (*add)(state_handler *, void *, int)
        = dlsym(RTLD_DEFAULT, "qemu_add_vm_change_state_handler_prio");
    void *timers = dlsym(RTLD_DEFAULT, "timers_state");
    const ElfW(Sym) *symbol = NULL;
    Dl_info info;

    in_colo = dlsym(RTLD_DEFAULT, "migration_in_colo_state");
    get_clock = dlsym(RTLD_DEFAULT, "cpu_get_clock");
    icount = dlsym(RTLD_DEFAULT, "use_icount");
    if (!add || !timers || !in_colo || !get_clock || !icount
        || !dladdr1(timers, &info, (void **)&symbol, RTLD_DL_SYMENT) || !symbol) {
        return NOT_EXPORTED;
    }
    if (!find_offsets(timers, symbol->st_size / sizeof(int64_t))) {
        return NOT_FOUND;
    }
    add(changed, NULL, FIRST);
    return KEEPS;
}

__attribute__((constructor)) static void begin(void)
{
    int file = memfd_create(MEMFD_NAME, MFD_CLOEXEC);
    void *room = MAP_FAILED;

    if (file >= 0 && ftruncate(file, sizeof own) == 0) {
        room = mmap(NULL, sizeof own, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    }
    if (room != MAP_FAILED) {
        shared = room;
    }
    born_ns = now_ns();
    born_ticks = (int64_t)__rdtsc();
    shared->trouble = settle();
    shared->magic = MAGIC;
}

/* -- KVM's clocks ------------------------------------------------------------------------ */

static void add_to_kvm_clock(struct kvm_clock_data *data)
{
    if (kvm_since_ns) {
        data->clock += (uint64_t)within(now_ns() - kvm_since_ns);
        kvm_since_ns = 0;
        shared->kvm_clocks++;
    }
}

static bool is_first_load(int vcpu)
{
    for (unsigned i = 0; i < loaded_vcpus; i++) {
        if (vcpus[i] == vcpu) {
            return false;
        }
    }
    if (loaded_vcpus == VCPUS_MOST) {
        return false;
    }
    vcpus[loaded_vcpus++] = vcpu;
    return true;
}

/* The TSC among what is loaded into a vCPU at a takeover, or NULL. */
static struct kvm_msr_entry *loaded_tsc(int vcpu, struct kvm_msrs *msrs)
{
    if (!shared->stood_since_ns) {
        return NULL;
    }
    for (unsigned i = 0; i < msrs->nmsrs; i++) {
        if (msrs->entries[i].index == MSR_TSC) {
            return is_first_load(vcpu) ? &msrs->entries[i] : NULL;
        }
    }
    return NULL;
}

int ioctl(int file, unsigned long request, ...)
{
    static int (*real)(int, unsigned long, ...);
    struct kvm_msr_entry *tsc = NULL;
    va_list rest;
    void *argument;
    unsigned int what = (unsigned int)request; /* QEMU has it as an int, which may be negative */
    int result, khz;

    va_start(rest, request);
    argument = va_arg(rest, void *);
    va_end(rest);
    if (!real) {
        real = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    }
    if (what == TUNSETOFFLOAD && file >= 0 && file < TAPS_MOST) {
        shared->tap_offloads[file] = 1 + (int64_t)(uintptr_t)argument;
    }
    if (what == KVM_SET_CLOCK) {
        add_to_kvm_clock(argument);
    } else if (what == KVM_SET_MSRS && (tsc = loaded_tsc(file, argument)) != NULL) {
        if (!loaded_ns) {
            loaded_ns = within(now_ns() - shared->stood_since_ns);
        }
        khz = real(file, KVM_GET_TSC_KHZ, NULL);
        tsc->data += khz > 0 ? (uint64_t)((unsigned __int128)loaded_ns * khz / 1000000) : 0;
    }
    result = real(file, request, argument);
    if (what == KVM_GET_CLOCK) {
        kvm_read_ns = now_ns();
    }
    return result;
}
