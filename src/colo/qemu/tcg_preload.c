/*
 * Makes COLO work on a QEMU primary under TCG: 7.2, and others whose memory is several blocks.
 *
 * QEMU 7.2 calls qemu_savevm_live_state() in a COLO checkpoint without the big lock.  Under
 * TCG two things go wrong there, neither of them under KVM:
 *
 * 1. The dirty log's synchronisation waits on a condition with a mutex that the thread does
 *    not own.  The wait returns owning it, and the primary deadlocks at the next checkpoint.
 *    Here: a wait by a thread that does not own the mutex is answered with a spurious wake-up,
 *    which POSIX allows; the caller looks at its condition and calls again.
 *
 *    That thread waits for work that it gave to a vCPU and then kicked it.  Without the lock the
 *    kick can fall between the vCPU's look for work and its going to sleep, and is lost: once in
 *    some hundred checkpoints the primary stalled for ever.  So each such wait kicks again.
 *
 *    The VM stands still for these waits, and a sleep of 20 µs takes some 75: the kernel's timers
 *    have 50 µs of slack, and a processor that idles has to be woken.  So most of them only yield.
 *
 * 2. The dirty bitmap is cleared without the vCPUs' software TLBs learning of it.  A page that
 *    is written again through an old TLB entry is not marked dirty and never sent: a silent,
 *    wrong copy.  QEMU 11.1 tells them, but of the block that it made first, whichever it cleared.
 *    Here: while the primary is in COLO, a thread that is neither the main thread
 *    nor a vCPU has all vCPUs flush their TLBs, before they run on, whenever it broadcasts a
 *    condition, as it does on its way through that synchronisation.
 *
 * The symbols looked up in QEMU are exported by its executable for its own modules.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GLIBC_OF_CONDITIONS "GLIBC_2.3.2"
#define YIELDS 64 /* so many waits only yield; then one sleeps */
#define SLEEP_US 20

static int (*real_wait)(pthread_cond_t *, pthread_mutex_t *);
static int (*real_broadcast)(pthread_cond_t *);
static bool (*in_colo)(void);
static bool (*in_vcpu_thread)(void);
static void *(*get_cpu)(int);
static void (*flush_tlb)(void *);
static void (*run_on_cpu)(void *, void (*)(void *, void *), void *);
static void (*kick_cpu)(void *);
static __thread bool busy; /* in a call from here, which must not lead here again */
static __thread unsigned waits;

static pid_t own_thread(void)
{
    static __thread pid_t id;

    if (!id) {
        id = (pid_t)syscall(SYS_gettid);
    }
    return id;
}

__attribute__((constructor)) static void look_up(void)
{
    real_wait = dlvsym(RTLD_NEXT, "pthread_cond_wait", GLIBC_OF_CONDITIONS);
    real_broadcast = dlvsym(RTLD_NEXT, "pthread_cond_broadcast", GLIBC_OF_CONDITIONS);
    in_colo = dlsym(RTLD_DEFAULT, "migration_in_colo_state");
    in_vcpu_thread = dlsym(RTLD_DEFAULT, "qemu_in_vcpu_thread");
    get_cpu = dlsym(RTLD_DEFAULT, "qemu_get_cpu");
    flush_tlb = dlsym(RTLD_DEFAULT, "tlb_flush");
    run_on_cpu = dlsym(RTLD_DEFAULT, "async_run_on_cpu");
    kick_cpu = dlsym(RTLD_DEFAULT, "qemu_cpu_kick");
}

static void on_all_cpus(void (*call)(void *))
{
    void *cpu;

    busy = true;
    for (int i = 0; (cpu = get_cpu(i)) != NULL; i++) {
        call(cpu);
    }
    busy = false;
}

int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
{
    if (mutex->__data.__owner != own_thread()) {
        if (++waits % YIELDS) {
            sched_yield();
            return 0;
        }
        usleep(SLEEP_US);
        if (!busy && kick_cpu && get_cpu) {
            on_all_cpus(kick_cpu);
        }
        return 0;
    }
    return real_wait(condition, mutex);
}

static void flush(void *cpu, void *nothing)
{
    (void)nothing;
    flush_tlb(cpu);
}

static void have_flushed(void *cpu)
{
    run_on_cpu(cpu, flush, NULL);
}

static bool flushes_here(void)
{
    return in_colo && in_vcpu_thread && get_cpu && flush_tlb && run_on_cpu
        && own_thread() != getpid() && in_colo() && !in_vcpu_thread();
}

int pthread_cond_broadcast(pthread_cond_t *condition)
{
    if (!busy && flushes_here()) {
        on_all_cpus(have_flushed);
    }
    return real_broadcast(condition);
}
