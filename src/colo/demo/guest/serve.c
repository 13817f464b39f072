/* --mode=serve: services over TCP whose clients notice each byte that is lost, doubled or wrong.
 *
 * 7000  stream    sends "<n>\n" for n = 0, 1, 2 ..., one each --line-ms=MS (10), for ever
 * 7001  echo      sends back what it gets
 * 7002  generate  "<bytes> <seed>\n" is answered with so many bytes of splitmix64 from seed
 * 7003  sink      takes all until the client's end, then answers "<bytes> <checksum>\n"
 * 7004  flood     "<packets>\n" is answered with so many UDP datagrams to the client's port
 *                 7005, as fast as they go, and then with "<packets>\n"
 * 7006  power     "poweroff\n" and "reboot\n" do so
 * 7007  clock     answers each line with "<monotonic> <realtime>\n", the guest's clocks in ns
 * 7008  records   answers each line with the number of one more record that is on --disk=PATH
 *                 (/dev/vda) by then: see disk.c; "verify" with that of the last one, once all are
 *                 looked at.  One connection at a time
 * --port=N serves on N, N + 1 ... instead.  Words are little-endian.  A datagram is its number
 * and zeros, 1400 bytes.  The checksum is the sum of mix(word ^ index * GOLDEN), the last word
 * filled up with zeros.
 *
 * The first process accepts and counts on the console, once a second; each connection has a
 * process of its own, which may block as it likes. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FLOOD_PORT = 5 /* after the first */, DATAGRAM = 1400, BLOCK = MIB / 4, LINE_MAX = 64 };
static uint16_t first_port;
static int64_t line_ns;
static bool is_guest;
static const char *disk_path;
static uint64_t block[BLOCK / sizeof(uint64_t)];

static void put(int peer, const void *data, size_t length)
{
    while (length > 0) {
        ssize_t sent = write(peer, data, length);
        if (sent <= 0)
            exit(0); /* the client has gone */
        data = (const char *)data + sent;
        length -= (size_t)sent;
    }
}

static void put_number(int peer, uint64_t n)
{
    char line[LINE_MAX];
    put(peer, line, (size_t)snprintf(line, sizeof line, "%" PRIu64 "\n", n));
}

static void get_line(int peer, char line[LINE_MAX])
{
    size_t used = 0;
    for (char c; used < LINE_MAX && read(peer, &c, 1) == 1; line[used++] = c)
        if (c == '\n') {
            line[used] = 0;
            return;
        }
    exit(0); /* its end, or no line of ours */
}

static void stream(int peer)
{
    int64_t due = now_ns();
    for (uint64_t n = 0;; n++) {
        put_number(peer, n);
        due += line_ns;
        if (due < now_ns())
            due = now_ns(); /* what was missed is not made up for */
        struct timespec until = {due / 1000000000, due % 1000000000};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
            ;
    }
}

static void echo(int peer)
{
    for (ssize_t got; (got = read(peer, block, sizeof block)) > 0;)
        put(peer, block, (size_t)got);
}

static void generate(int peer)
{
    for (char line[LINE_MAX];;) {
        uint64_t left, state;
        get_line(peer, line);
        if (sscanf(line, "%" SCNu64 " %" SCNu64, &left, &state) != 2)
            return;
        while (left > 0) {
            size_t length = left < sizeof block ? left : sizeof block;
            for (size_t i = 0; i * sizeof block[0] < length; i++)
                block[i] = mix(state += GOLDEN);
            put(peer, block, length);
            left -= length;
        }
    }
}

static void sink(int peer)
{
    uint64_t bytes = 0, index = 0, checksum = 0;
    char line[LINE_MAX];
    for (bool ended = false; !ended;) {
        size_t used = 0;
        while (used < sizeof block && !ended) {
            ssize_t got = read(peer, (char *)block + used, sizeof block - used);
            if (got < 0)
                return;
            ended = got == 0;
            used += (size_t)got;
        }
        bytes += used;
        memset((char *)block + used, 0, -used % sizeof block[0]);
        for (size_t i = 0; i * sizeof block[0] < used; i++)
            checksum += mix(block[i] ^ index++ * GOLDEN);
    }
    put(peer, line,
        (size_t)snprintf(line, sizeof line, "%" PRIu64 " %" PRIu64 "\n", bytes, checksum));
}

static void flood(int peer)
{
    uint64_t datagram[DATAGRAM / sizeof(uint64_t)] = {0}, packets;
    struct sockaddr_in to;
    char line[LINE_MAX];
    int out = socket(AF_INET, SOCK_DGRAM, 0);
    getpeername(peer, (struct sockaddr *)&to, &(socklen_t){sizeof to});
    to.sin_port = htons(first_port + FLOOD_PORT);
    connect(out, (struct sockaddr *)&to, sizeof to);
    for (;;) {
        get_line(peer, line);
        if (sscanf(line, "%" SCNu64, &packets) != 1)
            return;
        for (uint64_t n = 0; n < packets; n++) {
            datagram[0] = n;
            while (send(out, datagram, sizeof datagram, 0) < 0 && errno == ENOBUFS)
                usleep(1000); /* the device's queue is full */
        }
        put_number(peer, packets);
    }
}

static void power(int peer)
{
    char line[LINE_MAX];
    get_line(peer, line);
    line[strcspn(line, "\r\n")] = 0;
    int how = strcmp(line, "poweroff") == 0 ? RB_POWER_OFF
            : strcmp(line, "reboot") == 0   ? RB_AUTOBOOT
                                            : 0;
    if (how == 0)
        return;
    say("%s asked for", line);
    if (is_guest)
        reboot(how);
    kill(getppid(), SIGTERM); /* a test on a host */
}

static void clock_service(int peer)
{
    char line[LINE_MAX];
    for (char c; read(peer, &c, 1) == 1;)
        if (c == '\n')
            put(peer, line, (size_t)snprintf(line, sizeof line, "%" PRId64 " %" PRId64 "\n",
                                             now_ns(), clock_ns(CLOCK_REALTIME)));
}

static void records(int peer)
{
    char line[LINE_MAX];
    open_disk(disk_path);
    for (;;) {
        get_line(peer, line);
        bool verify = strcmp(line, "verify") == 0;
        put_number(peer, verify ? verify_disk() : put_on_disk());
    }
}

static const struct service {
    uint16_t port; /* after the first */
    void (*serve)(int peer);
} services[] = {{0, stream}, {1, echo}, {2, generate}, {3, sink}, {4, flood}, {6, power},
               {7, clock_service}, {8, records}};
enum { SERVICES = sizeof services / sizeof services[0] };

static int listen_on(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)); /* is inherited */
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 64) < 0)
        DIE("cannot listen on port %d: %s", port, strerror(errno));
    return listener;
}

static void serve_one(int listener, void (*serve)(int peer))
{
    pid_t parent = getpid();
    int peer = accept(listener, NULL, NULL);
    if (peer >= 0 && fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() == parent)
            serve(peer);
        exit(0);
    }
    close(peer);
}

_Noreturn void run_serve(char **argv)
{
    struct pollfd listeners[SERVICES];
    first_port = (uint16_t)number(argv, "--port=", "7000");
    line_ns = (int64_t)number(argv, "--line-ms=", "10") * 1000000;
    is_guest = getpid() == 1;
    disk_path = option(argv, "--disk=", "/dev/vda");
    signal(SIGCHLD, SIG_IGN); /* no zombies */
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < SERVICES; i++)
        listeners[i] = (struct pollfd){listen_on(first_port + services[i].port), POLLIN, 0};
    say("ready mode=serve port=%d", first_port);
    int64_t due = now_ns();
    for (uint64_t count = 1;;) {
        for (; due <= now_ns(); due = now_ns() + 1000000000)
            say("count=%" PRIu64, count++);
        int left_ms = (int)((due - now_ns()) / 1000000) + 1;
        if (poll(listeners, SERVICES, left_ms) <= 0)
            continue;
        for (int i = 0; i < SERVICES; i++)
            if (listeners[i].revents)
                serve_one(listeners[i].fd, services[i].serve);
    }
}
