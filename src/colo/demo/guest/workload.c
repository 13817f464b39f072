/* A guest program that notices when its memory is not the memory of one point in time.
 *
 * Most of the guest's memory is a table of records, one page each. A record can be checked by
 * itself: its body follows from its index and its generation. All records together can be
 * checked against the ledger, which knows how many updates there were and a digest of which.
 * A broken page fails the first check. A whole but stale page, as from a checkpoint that mixes
 * two points in time, passes the first and fails the second, at the latest at the end of the
 * first complete sweep that began after it.
 *
 * --mode=table  update and sweep the table, one line of output per tick; with --disk=PATH, write
 *               --disk-pace=N (4) records to that disk as well, up to --disk-records=N: see disk.c
 *        idle   one line a second, nothing else
 *        files  write, close and remove a file of 100 MiB in /tmp, one line per file
 *        pages  write to --pages=N (256) pages, each --every=MS (100), one line per turn
 *        build  as a build does: short-lived processes with memory of their own, each of which
 *               leaves a file in /tmp; these are put together and removed. One line per process
 *        io     write to --disk=PATH (/dev/vda) in three ways, one line for all three
 *        serve  services over TCP, one line a second: see serve.c; with --pages=N, a process beside
 *               them writes pages as above, and says nothing
 * Lines end with \n, go out in one write() each, and count up by one for ever. A line "verify"
 * on the console starts a complete sweep at once; "clock" is answered by the clocks, in ns.
 *
 * For the tests, on a host: --console=PATH --mib=N, and two faults that must be found:
 * --corrupt-after=N flips a byte of a record after N ticks, --stale-after=N puts a record of
 * another generation in its place. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { BODY_WORDS = PAGE / 8 - 3, SWEEP_PER_TICK = 512 /* records */, FILE_MIB = 100 };
enum { CHANGED_WORDS = 4 /* of a page */, OBJECTS = 32, OBJECT_KIB = 128, HEAP_MIB = 8 };
struct record { uint64_t index, generation, checksum, body[BODY_WORDS]; };
_Static_assert(sizeof(struct record) == PAGE, "a record fills a page");
struct tally { uint64_t generations, digest; }; /* what a set of records adds up to */

static struct record *table;
static uint64_t records;
static uint64_t chooser = GOLDEN;             /* the generator that chooses records */
static struct tally ledger;                   /* what all records must add up to */
static struct {
    uint64_t position, completed;
    struct tally seen; /* what the records before position add up to, now */
} sweep;
static int console;

void say(const char *format, ...)
{
    char line[256] = "colo-guest: ";
    size_t used = strlen(line);
    va_list args;
    va_start(args, format);
    vsnprintf(line + used, sizeof line - used - 1, format, args);
    va_end(args);
    used = strlen(line);
    line[used++] = '\n';
    /* A guest without a serial port goes on mutely; a test whose reader is gone ends. */
    if (write(console, line, used) < 0 && getpid() != 1)
        exit(1);
}

_Noreturn void halt(void)
{
    say("HALTED, powering off");
    tcdrain(console);
    if (getpid() == 1)
        reboot(RB_POWER_OFF);
    exit(1); /* not the guest's first process: this is a test on a host */
}

static inline uint64_t next(uint64_t x) /* xorshift64; 0 is its only fixed point */
{
    x ^= x << 13;
    x ^= x >> 7;
    return x ^ (x << 17);
}

static inline uint64_t add_to_checksum(uint64_t sum, uint64_t word)
{
    return ((sum << 5) | (sum >> 59)) + word;
}

/* Stands for one record in one generation: seeds its body, enters the digest. Never 0. */
static uint64_t fingerprint(uint64_t index, uint64_t generation)
{
    return mix(index * GOLDEN + mix(generation + 1)) | 1;
}

static void write_record(uint64_t index, uint64_t generation)
{
    struct record *r = &table[index];
    uint64_t word = fingerprint(index, generation), sum = add_to_checksum(index, generation);
    r->index = index;
    r->generation = generation;
    for (int i = 0; i < BODY_WORDS; i++) {
        r->body[i] = word = next(word);
        sum = add_to_checksum(sum, word);
    }
    r->checksum = sum;
}

static void must_equal(uint64_t index, const char *what, uint64_t is, uint64_t must)
{
    if (is != must)
        DIE("CORRUPT record=%" PRIu64 ": %s is %016" PRIx64 " instead of %016" PRIx64
            " (generation %" PRIu64 ")", index, what, is, must, table[index].generation);
}

static void verify_record(uint64_t index)
{
    const struct record *r = &table[index];
    uint64_t word = fingerprint(index, r->generation), sum = add_to_checksum(index, r->generation);
    must_equal(index, "its index", r->index, index);
    for (int i = 0; i < BODY_WORDS; i++) {
        word = next(word);
        must_equal(index, "a word of its body", r->body[i], word);
        sum = add_to_checksum(sum, word);
    }
    must_equal(index, "its checksum", r->checksum, sum);
}

static void tally_update(struct tally *tally, uint64_t index, uint64_t old_generation)
{
    tally->generations += 1;
    tally->digest += fingerprint(index, old_generation + 1) - fingerprint(index, old_generation);
}

static void compare_with_ledger(const struct tally *seen)
{
    if (seen->generations != ledger.generations || seen->digest != ledger.digest)
        DIE("CORRUPT record=any: each is whole, but they hold %" PRIu64 " updates (digest %016"
            PRIx64 ") and the ledger %" PRIu64 " (%016" PRIx64 ")",
            seen->generations, seen->digest, ledger.generations, ledger.digest);
}

static uint64_t choose_record(void)
{
    chooser = next(chooser);
    return (uint64_t)(((unsigned __int128)mix(chooser) * records) >> 64);
}

static void update_one(void)
{
    uint64_t index = choose_record(), generation = table[index].generation;
    verify_record(index);
    write_record(index, generation + 1);
    tally_update(&ledger, index, generation);
    if (index < sweep.position) /* the sweep has counted it already: keep its sum exact */
        tally_update(&sweep.seen, index, generation);
}

static void verify_and_add(struct tally *seen, uint64_t first, uint64_t end)
{
    for (uint64_t index = first; index < end; index++) {
        verify_record(index);
        seen->generations += table[index].generation;
        seen->digest += fingerprint(index, table[index].generation);
    }
}

static void sweep_some(void)
{
    uint64_t end = sweep.position + SWEEP_PER_TICK;
    if (end > records)
        end = records;
    verify_and_add(&sweep.seen, sweep.position, end);
    sweep.position = end;
    if (end < records)
        return;
    compare_with_ledger(&sweep.seen);
    sweep.completed++;
    sweep.position = 0;
    sweep.seen = (struct tally){0};
}

static void verify_all(void)
{
    struct tally seen = {0};
    verify_and_add(&seen, 0, records);
    compare_with_ledger(&seen);
    say("verified records=%" PRIu64 " ledger=%" PRIu64, records, ledger.generations);
}

static bool has_disk;

static bool read_console(void) /* one character; false at the end */
{
    static char line[16];
    static size_t used;
    char c;
    if (read(console, &c, 1) != 1)
        return false;
    if (c != '\r' && c != '\n') {
        line[used] = c;
        used = (used + 1) % (sizeof line - 1);
        return true;
    }
    line[used] = 0;
    used = 0;
    if (strcmp(line, "verify") == 0) {
        if (has_disk)
            verify_disk();
        verify_all();
    }
    else if (strcmp(line, "clock") == 0)
        say("clock monotonic=%" PRId64 " realtime=%" PRId64, now_ns(), clock_ns(CLOCK_REALTIME));
    return true;
}

int64_t clock_ns(clockid_t which)
{
    struct timespec t;
    clock_gettime(which, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

int64_t now_ns(void)
{
    static int64_t last;
    int64_t now = clock_ns(CLOCK_MONOTONIC);
    if (now < last)
        DIE("CORRUPT clock: it went back from %" PRId64 " to %" PRId64, last, now);
    return last = now;
}

/* Listen to the console until the next tick. Ticks that were missed are not made up for. */
static void wait_for_tick(uint64_t tick_ms)
{
    static int64_t deadline_ns;
    static bool console_ended;
    int64_t now = now_ns();
    deadline_ns += (int64_t)tick_ms * 1000000;
    if (deadline_ns < now)
        deadline_ns = now;
    do {
        int64_t left_ns = deadline_ns > now ? deadline_ns - now : 0;
        struct timespec left = {left_ns / 1000000000, left_ns % 1000000000};
        struct pollfd input = {.fd = console_ended ? -1 : console, .events = POLLIN};
        if (ppoll(&input, 1, &left, NULL) > 0)
            console_ended = !read_console();
        now = now_ns();
    } while (now < deadline_ns);
}

const char *option(char **argv, const char *name, const char *otherwise)
{
    size_t length = strlen(name);
    while (*++argv)
        if (strncmp(*argv, name, length) == 0)
            return *argv + length;
    return otherwise;
}

uint64_t number(char **argv, const char *name, const char *otherwise)
{
    return strtoull(option(argv, name, otherwise), NULL, 10);
}

static _Noreturn void run_table(char **argv)
{
    uint64_t pace = number(argv, "--pace=", "200"), tick_ms = number(argv, "--tick=", "50");
    uint64_t fill_percent = number(argv, "--fill=", "60"), mib = number(argv, "--mib=", "0");
    uint64_t corrupt_after = number(argv, "--corrupt-after=", "0");
    uint64_t stale_after = number(argv, "--stale-after=", "0");
    uint64_t disk_pace = number(argv, "--disk-pace=", "4"), on_disk = 0;
    uint64_t disk_records = number(argv, "--disk-records=", "18446744073709551615");
    const char *disk = option(argv, "--disk=", "");
    has_disk = *disk != 0;
    if (has_disk)
        on_disk = open_disk(disk);
    records = mib ? mib * MIB / PAGE : (uint64_t)sysconf(_SC_AVPHYS_PAGES) * fill_percent / 100;
    table = mmap(NULL, records * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (table == MAP_FAILED)
        DIE("no memory for %" PRIu64 " records: %s", records, strerror(errno));
    for (uint64_t index = 0; index < records; index++) {
        write_record(index, 0);
        ledger.digest += fingerprint(index, 0);
    }
    say("ready mode=table records=%" PRIu64 " mib=%" PRIu64, records, records * PAGE / MIB);
    for (uint64_t count = 1;; count++) {
        for (uint64_t i = 0; i < pace; i++)
            update_one();
        sweep_some();
        for (uint64_t i = 0; has_disk && i < disk_pace && on_disk < disk_records; i++)
            on_disk = put_on_disk();
        say("count=%" PRIu64 " updates=%" PRIu64 " sweeps=%" PRIu64, count, ledger.generations,
            sweep.completed);
        if (count == corrupt_after)
            ((uint8_t *)&table[choose_record()])[mix(chooser) % PAGE] ^= 0xff;
        if (count == stale_after)
            write_record(records / 2, table[records / 2].generation + 1);
        wait_for_tick(tick_ms);
    }
}

static _Noreturn void run_idle(void)
{
    say("ready mode=idle");
    for (uint64_t count = 1;; count++) {
        say("count=%" PRIu64, count);
        wait_for_tick(1000);
    }
}

static _Noreturn void run_io(char **argv)
{
    const char *path = option(argv, "--disk=", "/dev/vda");
    int64_t ns = (int64_t)number(argv, "--ms=", "1000") * 1000000;
    say("ready mode=io");
    for (uint64_t count = 1;; count++) {
        double sequential = write_for(path, MIB, false, false, ns);
        double random = write_for(path, PAGE, true, false, ns);
        double synced = write_for(path, PAGE, true, true, ns);
        say("count=%" PRIu64 " sequential=%.1f random=%.1f synced=%.1f", count, sequential, random,
            synced);
    }
}

static _Noreturn void run_files(void)
{
    static uint64_t block[MIB / sizeof(uint64_t)];
    static const char path[] = "/tmp/colo-guest";
    say("ready mode=files mib=%d", FILE_MIB);
    for (uint64_t count = 1;; count++) {
        int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        for (int mib = 0; mib < FILE_MIB; mib++) {
            for (size_t i = 0; i < sizeof block / sizeof block[0]; i++)
                block[i] = chooser = next(chooser);
            if (write(file, block, sizeof block) != sizeof block)
                DIE("cannot write %s: %s", path, strerror(errno));
        }
        close(file);
        unlink(path);
        say("count=%" PRIu64, count);
        wait_for_tick(0);
    }
}

/* No page more than these is written but by the kernel, and for the lines on the console. */
static _Noreturn void run_pages(char **argv, bool is_told)
{
    uint64_t pages = number(argv, "--pages=", "256"), every_ms = number(argv, "--every=", "100");
    uint64_t (*page)[PAGE / sizeof(uint64_t)] = mmap(
        NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        DIE("no memory for %" PRIu64 " pages: %s", pages, strerror(errno));
    for (uint64_t i = 0; i < pages; i++) /* no page is to look like another one */
        for (size_t word = 0; word < PAGE / sizeof(uint64_t); word++)
            page[i][word] = chooser = next(chooser);
    if (is_told)
        say("ready mode=pages pages=%" PRIu64, pages);
    for (uint64_t count = 1;; count++) {
        for (uint64_t i = 0; i < pages; i++)
            for (size_t word = 0; word < CHANGED_WORDS; word++)
                page[i][word * PAGE / sizeof(uint64_t) / CHANGED_WORDS] = chooser = next(chooser);
        if (is_told)
            say("count=%" PRIu64, count);
        wait_for_tick(every_ms);
    }
}

static void write_words(int file, const uint64_t *words, size_t bytes)
{
    if (file < 0 || write(file, words, bytes) != (ssize_t)bytes)
        DIE("cannot write in /tmp: %s", strerror(errno));
}

static void object_path(char *path, size_t size, int object)
{
    snprintf(path, size, "/tmp/object-%d", object);
}

/* In a process of its own: fill memory, go through it, leave a file. */
static _Noreturn void compile(uint64_t unit, int object)
{
    enum { WORDS = HEAP_MIB * MIB / sizeof(uint64_t), KEPT = OBJECT_KIB * 1024 };
    char path[32];
    uint64_t *heap = malloc(WORDS * sizeof *heap);
    if (heap == NULL)
        DIE("no memory for a process: %s", strerror(errno));
    chooser = fingerprint(unit, 0);
    for (size_t i = 0; i < WORDS; i++)
        heap[i] = chooser = next(chooser);
    for (size_t i = 1; i < WORDS; i++)
        heap[i] += heap[(i * GOLDEN) % i];
    object_path(path, sizeof path, object);
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    write_words(file, heap, KEPT);
    _exit(0);
}

static void link_objects(void)
{
    static uint64_t content[OBJECT_KIB * 1024 / sizeof(uint64_t)];
    char path[32];
    int whole = open("/tmp/whole", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    for (int object = 0; object < OBJECTS; object++) {
        object_path(path, sizeof path, object);
        int file = open(path, O_RDONLY);
        if (read(file, content, sizeof content) != (ssize_t)sizeof content)
            DIE("cannot read %s: %s", path, strerror(errno));
        close(file);
        unlink(path);
        write_words(whole, content, sizeof content);
    }
    close(whole);
}

static _Noreturn void run_build(void)
{
    say("ready mode=build");
    for (uint64_t count = 1;; count++) {
        int object = (int)((count - 1) % OBJECTS), status = 0;
        pid_t child = fork();
        if (child == 0)
            compile(count, object);
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
            DIE("a process of the build failed: %s", strerror(errno));
        if (object == OBJECTS - 1)
            link_objects();
        say("count=%" PRIu64, count);
        wait_for_tick(0);
    }
}

int main(int argc, char **argv)
{
    (void)argc;
    const char *mode = option(argv, "--mode=", "table");
    struct termios tty;
    console = open(option(argv, "--console=", "/dev/ttyS0"), O_RDWR | O_NOCTTY);
    if (tcgetattr(console, &tty) == 0) {
        cfmakeraw(&tty);
        tcsetattr(console, TCSANOW, &tty);
    }
    if (strcmp(mode, "table") == 0)
        run_table(argv);
    if (strcmp(mode, "idle") == 0)
        run_idle();
    if (strcmp(mode, "io") == 0)
        run_io(argv);
    if (strcmp(mode, "files") == 0)
        run_files();
    if (strcmp(mode, "pages") == 0)
        run_pages(argv, true);
    if (strcmp(mode, "build") == 0)
        run_build();
    if (strcmp(mode, "serve") == 0) {
        if (*option(argv, "--pages=", "") && fork() == 0)
            run_pages(argv, false);
        run_serve(argv);
    }
    DIE("unknown mode %s", mode);
}
