/* Records on a disk that notice when the disk is not the disk of one point in time.
 *
 * Record n fills one block of 4 KiB, whose place follows from n; so each place has one record a
 * lap, and what has to lie there before n is written is known: the record of the lap before.  A
 * block that is torn fails its checksum; a write that is lost, or one of a time that never came,
 * shows in what is found in its place.  All goes past the page cache, and is on the disk when
 * put_on_disk() returns. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { WORDS = PAGE / 8 - 2, READ_RECORDS = 64, STRIDE = 40503 /* odd: each place once a lap */ };
struct record { uint64_t number, checksum, body[WORDS]; };
_Static_assert(sizeof(struct record) == PAGE, "a record fills a block");

static int disk;
static uint64_t places, last; /* a power of two; the number of the last record */
static struct record *buffer; /* page-aligned, as O_DIRECT wants it */

static uint64_t place_of(uint64_t n)
{
    return n * STRIDE % places;
}

static uint64_t fill(struct record *r, uint64_t n)
{
    uint64_t state = n, sum = n;
    for (int i = 0; i < WORDS; i++) {
        r->body[i] = mix(state += GOLDEN);
        sum = (sum << 5 | sum >> 59) + r->body[i];
    }
    return sum;
}

/* The number of the record in a block, 0 of an empty one; anything else is a torn or foreign one. */
static uint64_t number_in(const struct record *r, uint64_t place)
{
    static struct record must;
    if (r->number == 0)
        return 0;
    uint64_t sum = fill(&must, r->number);
    if (place_of(r->number) != place || r->checksum != sum
        || memcmp(r->body, must.body, sizeof must.body) != 0)
        DIE("CORRUPT disk: place %" PRIu64 " has a broken record %" PRIu64, place, r->number);
    return r->number;
}

static void must_hold(const struct record *r, uint64_t place, uint64_t n)
{
    uint64_t found = number_in(r, place);
    if (found != n)
        DIE("CORRUPT disk: place %" PRIu64 " has record %" PRIu64 " instead of %" PRIu64
            ", the last one is %" PRIu64, place, found, n, last);
}

static void transfer(bool out, struct record *at, size_t records, uint64_t place)
{
    size_t length = records * PAGE;
    off_t offset = (off_t)(place * PAGE);
    ssize_t done = out ? pwrite(disk, at, length, offset) : pread(disk, at, length, offset);
    if (done != (ssize_t)length)
        DIE("the disk does not %s at place %" PRIu64 ": %s", out ? "write" : "read", place,
            done < 0 ? strerror(errno) : "it ends");
}

/* The record that has to lie in a place, the last one being `last`; 0 where none does yet. */
static uint64_t due_in(uint64_t place)
{
    uint64_t inverse = STRIDE; /* of STRIDE, modulo any power of two: Newton's steps */
    for (int i = 0; i < 6; i++)
        inverse *= 2 - STRIDE * inverse;
    uint64_t first = place * inverse % places; /* the lowest n with this place */
    if (first > last || last == 0)
        return 0;
    uint64_t n = first + (last - first) / places * places;
    return n; /* of place 0, n = 0 means that none was written */
}

uint64_t verify_disk(void)
{
    for (uint64_t place = 0; place < places; place += READ_RECORDS) {
        transfer(false, buffer, READ_RECORDS, place);
        for (uint64_t i = 0; i < READ_RECORDS; i++)
            must_hold(&buffer[i], place + i, due_in(place + i));
    }
    say("verified disk=%" PRIu64, last);
    return last;
}

uint64_t open_disk(const char *path)
{
    disk = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    off_t size = disk < 0 ? -1 : lseek(disk, 0, SEEK_END);
    buffer = mmap(NULL, READ_RECORDS * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                  -1, 0);
    if (size < READ_RECORDS * PAGE || buffer == MAP_FAILED)
        DIE("no disk at %s: %s", path, strerror(errno));
    for (places = READ_RECORDS; places * 2 * PAGE <= (uint64_t)size;)
        places *= 2;
    for (uint64_t place = 0; place < places; place += READ_RECORDS) {
        transfer(false, buffer, READ_RECORDS, place);
        for (uint64_t i = 0; i < READ_RECORDS; i++) {
            uint64_t found = number_in(&buffer[i], place + i);
            last = found > last ? found : last;
        }
    }
    verify_disk();
    return last;
}

uint64_t put_on_disk(void)
{
    uint64_t n = last + 1, place = place_of(n);
    transfer(false, buffer, 1, place);
    must_hold(buffer, place, n > places ? n - places : 0);
    buffer->number = n;
    buffer->checksum = fill(buffer, n);
    transfer(true, buffer, 1, place);
    if (fdatasync(disk) < 0)
        DIE("the disk does not sync: %s", strerror(errno));
    return last = n;
}

double write_for(const char *path, size_t bytes, bool at_random, bool synced, int64_t ns)
{
    static uint64_t *data, chooser = GOLDEN;
    int file = open(path, O_WRONLY | O_DIRECT | O_CLOEXEC);
    uint64_t size = file < 0 ? 0 : (uint64_t)lseek(file, 0, SEEK_END), writes = 0;
    if (data == NULL)
        data = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (size < MIB || data == MAP_FAILED)
        DIE("no disk at %s: %s", path, strerror(errno));
    int64_t began = now_ns(), now = began;
    for (; now < began + ns; now = now_ns(), writes++) {
        for (size_t i = 0; i < bytes / sizeof *data; i += 64)
            data[i] = chooser = mix(chooser + GOLDEN);
        uint64_t place = (at_random ? chooser : writes) % (size / bytes);
        if (pwrite(file, data, bytes, (off_t)(place * bytes)) != (ssize_t)bytes)
            DIE("cannot write %s: %s", path, strerror(errno));
        if (synced && fdatasync(file) < 0)
            DIE("cannot sync %s: %s", path, strerror(errno));
    }
    close(file);
    return (double)writes * 1e9 / (double)(now - began);
}
