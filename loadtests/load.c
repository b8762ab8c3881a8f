/* A small HTTP/1.1 load generator: one thread, epoll, kept-alive connections; a few microseconds of CPU a request.
 *
 * On a machine that generator and server share, the generator's own work is part of what is measured, and a
 * client in Python costs more than a fast server. `load.py` compiles this file, runs it and reads its output.
 *
 *   closed loop (no --rate): every connection sends as soon as its last answer came. What finishes within the
 *     window is counted; latency runs from the moment of sending.
 *   open loop (--rate R): Poisson arrivals, R a second, drawn before any answer is known. What was due within the
 *     window is counted and waited for; latency runs from the moment at which a request was due. Is every
 *     connection busy at that moment, the request is not sent but counted as unsent.
 *
 * The file of requests holds complete HTTP requests, each after its length (32 bits, little endian); they are sent
 * in rotation. Latencies and the rate are those of good answers: status 2xx, and what --expect or --expect-bytes
 * ask for. Everything else is counted by kind. The result is one JSON object on standard output, durations in
 * microseconds. Exit code 2: it could not run. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define TICK_NS (10 * 1000000LL) /* how often timeouts are looked for and lost connections are tried again */
#define MAX_ANSWER (64u << 20)   /* bytes; a longer answer is a protocol error */
#define UNTIL_CLOSE -1           /* body lengths that are not known from the head */
#define CHUNKED -2

enum state { DOWN, CONNECTING, IDLE, BUSY };
enum failure { REFUSED, LOST, TIMEOUT, PROTOCOL, WRONG, FAILURES };
static const char *const failure_names[FAILURES] = {"refused", "lost", "timeout", "protocol", "wrong"};

struct request { const char *data; size_t size; };

struct connection {
    enum state state;
    int fd;
    uint32_t watched; /* epoll events asked for */
    const struct request *request;
    size_t sent;
    int64_t due, deadline;
    char *answer; /* head, then the body with its chunk framing removed */
    size_t have, room;
    size_t head;    /* bytes of the head; 0 until it is complete */
    int64_t length; /* of the body, or UNTIL_CLOSE, CHUNKED */
    size_t decoded; /* end of the part of a chunked body whose framing was removed */
    int status;
    bool closing;
};

static struct {
    struct sockaddr_in address;
    int connections, expect_bytes;
    double rate;
    int64_t window, warmup, timeout;
    const char *expect;
} options = {.connections = 1, .expect_bytes = -1, .window = 10 * SECOND, .warmup = SECOND, .timeout = 10 * SECOND};

static struct request *requests;
static size_t request_count, next_request;
static struct connection *connections;
static int poller, used, busy;
static struct connection **spare; /* ring of connections without a request, the longest unused first */
static size_t spare_head, spare_count;
static int64_t began, ended; /* the measured window */
static uint64_t random_state = 1;

static struct {
    uint64_t good, cells[35 * 128], codes[600], failures[FAILURES], unsent, unfinished, bytes;
    int64_t max, last;
    double sum;
} found;

static void die(const char *what) {
    fprintf(stderr, "load: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(2);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static double cpu_seconds(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static double exponential(void) { /* mean 1; the generator is splitmix64 (Steele, Lea, Flood 2014) */
    uint64_t z = (random_state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return -log(((double)((z ^ (z >> 31)) >> 11) + 1) / 9007199254740993.0);
}

/* -- counting: a log-linear histogram, exact below 128 ns and then 128 cells a doubling (0.8 %) -- */

static void count_latency(int64_t ns) {
    uint64_t value = ns < 0 ? 0 : (uint64_t)ns;
    int power = value < 128 ? 0 : 56 - __builtin_clzll(value);
    size_t cell = (size_t)power * 128 + (value >> power);
    size_t last = sizeof found.cells / sizeof *found.cells - 1;
    found.cells[cell < last ? cell : last]++;
    found.sum += (double)value;
    if (ns > found.max) found.max = ns;
}

static double quantile_us(double q) { /* nearest rank; the upper end of its cell */
    uint64_t seen = 0, rank = (uint64_t)ceil(q * (double)found.good);
    for (size_t cell = 0; cell < sizeof found.cells / sizeof *found.cells; cell++) {
        if ((seen += found.cells[cell]) < (rank ? rank : 1)) continue;
        int power = cell < 128 ? 0 : (int)(cell / 128) - 1;
        int64_t upper = ((int64_t)(cell - (size_t)power * 128 + 1) << power) - 1;
        return (double)(upper < found.max ? upper : found.max) / 1e3;
    }
    return (double)found.max / 1e3;
}

static bool counted(const struct connection *c, int64_t now) {
    int64_t moment = options.rate > 0 ? c->due : now;
    return moment >= began && moment < ended;
}

static void count_failure(const struct connection *c, enum failure kind) {
    if (counted(c, now_ns())) found.failures[kind]++;
}

static void count_answer(const struct connection *c) {
    int64_t now = now_ns();
    if (!counted(c, now)) return;
    found.codes[c->status]++;
    if (c->status < 200 || c->status > 299) return;
    size_t body = c->have - c->head;
    if ((options.expect_bytes >= 0 && body != (size_t)options.expect_bytes) ||
        (options.expect && !memmem(c->answer + c->head, body, options.expect, strlen(options.expect)))) {
        found.failures[WRONG]++;
        return;
    }
    found.good++;
    found.bytes += c->have;
    found.last = now;
    count_latency(now - c->due);
}

/* -- connections -- */

static void watch(struct connection *c, uint32_t events) {
    if (c->watched == events) return;
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, c->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &e)) die("epoll_ctl");
    c->watched = events;
}

static void put_spare(struct connection *c) {
    spare[(spare_head + spare_count++) % (size_t)options.connections] = c;
}

static struct connection *take_spare(void) { /* the longest unused first, so that none idles until it is closed */
    if (!spare_count) return used < options.connections ? &connections[used++] : NULL;
    struct connection *c = spare[spare_head];
    spare_head = (spare_head + 1) % (size_t)options.connections;
    spare_count--;
    return c;
}

static void hang_up(struct connection *c) {
    if (c->state != DOWN) close(c->fd);
    c->state = DOWN;
    c->watched = 0;
}

static void fail(struct connection *c, enum failure kind) { /* the next tick, not this moment, tries again */
    count_failure(c, kind);
    hang_up(c);
    busy--;
    put_spare(c);
}

static void send_rest(struct connection *c) {
    ssize_t n = send(c->fd, c->request->data + c->sent, c->request->size - c->sent, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) return fail(c, LOST);
    c->sent += n > 0 ? (size_t)n : 0;
    watch(c, c->sent < c->request->size ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static void start(struct connection *c, int64_t due) {
    c->request = &requests[next_request++ % request_count];
    c->due = due;
    c->deadline = now_ns() + options.timeout;
    c->sent = c->have = c->head = c->decoded = 0;
    busy++;
    if (c->state == IDLE) {
        c->state = BUSY;
        return send_rest(c);
    }
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->state = CONNECTING;
    if (connect(c->fd, (struct sockaddr *)&options.address, sizeof options.address) && errno != EINPROGRESS)
        return fail(c, REFUSED);
    watch(c, EPOLLOUT);
}

static void connected(struct connection *c) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) return fail(c, REFUSED);
    c->state = BUSY;
    send_rest(c);
}

/* -- answers -- */

static bool parse_head(struct connection *c) { /* false: not HTTP/1.x */
    char *end = memmem(c->answer, c->have, "\r\n\r\n", 4);
    if (!end) return c->have < 65536 && !memcmp(c->answer, "HTTP/1.", c->have < 7 ? c->have : 7);
    if (c->have < 12 || memcmp(c->answer, "HTTP/1.", 7)) return false;
    c->head = (size_t)(end - c->answer) + 4;
    c->status = atoi(c->answer + 9);
    if (c->status < 100 || c->status > 599) return false;
    c->closing = c->answer[7] == '0';
    c->length = c->status == 204 || c->status == 304 ? 0 : UNTIL_CLOSE;
    for (char *line = memchr(c->answer, '\n', c->head); line + 3 < c->answer + c->head; line = strchr(line, '\n')) {
        line++;
        if (!strncasecmp(line, "content-length:", 15)) c->length = strtoll(line + 15, NULL, 10);
        if (!strncasecmp(line, "transfer-encoding: chunked", 26)) c->length = CHUNKED;
        if (!strncasecmp(line, "connection: close", 17)) c->closing = true;
    }
    c->decoded = c->head;
    return c->length >= CHUNKED;
}

static int unchunk(struct connection *c) { /* 1: the body is complete, 0: more must come, -1: not chunked */
    for (;;) {
        char *at = c->answer + c->decoded, *end = memmem(at, c->have - c->decoded, "\r\n", 2), *stop;
        if (!end) return 0;
        unsigned long size = strtoul(at, &stop, 16);
        size_t frame = (size_t)(end - at) + 2;
        if (stop == at || size > MAX_ANSWER) return -1;
        if (!size) { /* trailers, if any, end with an empty line */
            if (!memmem(end, c->have - c->decoded - frame + 2, "\r\n\r\n", 4)) return 0;
            c->have = c->decoded;
            return 1;
        }
        if (c->have - c->decoded < frame + size + 2) return 0;
        memmove(at, at + frame, size);
        memmove(at + size, at + frame + size + 2, c->have - c->decoded - frame - size - 2);
        c->decoded += size;
        c->have -= frame + 2;
    }
}

static void complete(struct connection *c) {
    count_answer(c);
    busy--;
    if (c->closing || c->sent < c->request->size) hang_up(c); /* answered before it had the whole request */
    else c->state = IDLE;
    if (options.rate > 0) put_spare(c);
    else start(c, now_ns());
}

static void receive(struct connection *c) {
    if (c->room - c->have < 4096) {
        c->room = c->room ? c->room * 2 : 16384;
        if (c->room > MAX_ANSWER || !(c->answer = realloc(c->answer, c->room))) die("an answer is too long");
    }
    ssize_t n = recv(c->fd, c->answer + c->have, c->room - c->have - 1, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        if (n < 0 || !c->head || c->length != UNTIL_CLOSE) return fail(c, LOST);
        c->closing = true;
        return complete(c);
    }
    c->have += (size_t)n;
    c->answer[c->have] = 0; /* so that string functions stop */
    if (!c->head && !parse_head(c)) return fail(c, PROTOCOL);
    if (!c->head || c->length == UNTIL_CLOSE) return;
    int done = c->length == CHUNKED ? unchunk(c) : c->have - c->head >= (size_t)c->length;
    if (done < 0 || (done && c->length >= 0 && c->have - c->head > (size_t)c->length)) return fail(c, PROTOCOL);
    if (done) complete(c);
}

/* -- the loop -- */

static void tick(int64_t now) {
    for (int i = 0; i < used; i++)
        if ((connections[i].state == BUSY || connections[i].state == CONNECTING) && now > connections[i].deadline)
            fail(&connections[i], TIMEOUT);
    if (options.rate > 0) return;
    for (size_t lost = spare_count; lost; lost--) start(take_spare(), now);
}

static int64_t arrive(int64_t due, int64_t now) { /* send what is due by now; the moment of the next arrival */
    while (due <= now && due < ended) {
        struct connection *c = take_spare();
        if (c) start(c, due);
        else if (due >= began) found.unsent++;
        due += (int64_t)(exponential() * SECOND / options.rate);
    }
    return due < ended ? due : INT64_MAX;
}

static void wait_and_handle(int64_t until, int64_t now) {
    struct epoll_event events[256];
    int64_t left = until > now ? until - now : 0;
    struct timespec limit = {left / SECOND, left % SECOND};
    int n = (int)syscall(SYS_epoll_pwait2, poller, events, 256, &limit, NULL, 0);
    if (n < 0 && errno != EINTR) die("epoll_pwait2");
    for (int i = 0; i < n; i++) {
        struct connection *c = events[i].data.ptr;
        if (c->state == CONNECTING) connected(c);
        else if (c->state == IDLE) hang_up(c); /* the server closed a connection that was not in use */
        else if (events[i].events & EPOLLOUT && c->sent < c->request->size) send_rest(c);
        else receive(c);
    }
}

static double run(void) { /* CPU seconds of this process within the window */
    int64_t now = now_ns(), due = INT64_MAX, next_tick = now + TICK_NS;
    double cpu_before = 0, cpu_after = 0;
    began = now + options.warmup;
    ended = began + options.window;
    if (options.rate > 0) due = now;
    else
        while (used < options.connections) start(take_spare(), now);
    while (now < ended || (options.rate > 0 && busy)) {
        if (!cpu_before && now >= began) cpu_before = cpu_seconds();
        if (!cpu_after && now >= ended) cpu_after = cpu_seconds();
        if (due <= now) due = arrive(due, now);
        if (now >= next_tick) {
            tick(now);
            next_tick = now + TICK_NS;
        }
        wait_and_handle(due < next_tick ? due : next_tick, now);
        now = now_ns();
    }
    found.unfinished = options.rate > 0 ? 0 : (uint64_t)busy;
    return (cpu_after ? cpu_after : cpu_seconds()) - cpu_before;
}

static void print_result(double cpu) {
    /* In the open loop answers may come after the window: a server that falls behind has a lower rate. */
    int64_t until = options.rate > 0 && found.last > ended ? found.last : ended;
    double seconds = (double)(until - began) / 1e9, good = (double)found.good;
    printf("{\"count\": %lu, \"seconds\": %.6f, \"rate\": %.3f, \"cpu_s\": %.6f, \"bytes\": %lu, \"unsent\": %lu, "
           "\"unfinished\": %lu, \"latency_us\": {", found.good, seconds, good / seconds, cpu, found.bytes, found.unsent,
           found.unfinished);
    if (found.good)
        printf("\"mean\": %.1f, \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"p99.9\": %.1f, \"max\": %.1f",
               found.sum / good / 1e3, quantile_us(.5), quantile_us(.9), quantile_us(.99), quantile_us(.999),
               (double)found.max / 1e3);
    printf("}, \"codes\": {");
    const char *comma = "";
    for (int code = 0; code < 600; code++)
        if (found.codes[code]) printf("%s\"%d\": %lu", comma, code, found.codes[code]), comma = ", ";
    printf("}, \"failures\": {");
    for (int kind = 0; kind < FAILURES; kind++)
        printf("%s\"%s\": %lu", kind ? ", " : "", failure_names[kind], found.failures[kind]);
    printf("}}\n");
}

/* -- setting up -- */

static void read_requests(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    unsigned char prefix[4];
    while (fread(prefix, 1, 4, file) == 4) {
        size_t size = prefix[0] | (size_t)prefix[1] << 8 | (size_t)prefix[2] << 16 | (size_t)prefix[3] << 24;
        char *data = malloc(size + 1);
        requests = realloc(requests, (request_count + 1) * sizeof *requests);
        if (!data || !requests || fread(data, 1, size, file) != size) die("the file of requests is cut off");
        requests[request_count++] = (struct request){data, size};
    }
    fclose(file);
    if (!request_count) die("the file of requests is empty");
}

static void read_options(int argc, char **argv) {
    static const struct option names[] = {
        {"port", 1, 0, 'p'}, {"requests", 1, 0, 'f'}, {"connections", 1, 0, 'c'}, {"rate", 1, 0, 'r'},
        {"seconds", 1, 0, 's'}, {"warmup", 1, 0, 'w'}, {"timeout", 1, 0, 't'}, {"expect", 1, 0, 'e'},
        {"expect-bytes", 1, 0, 'b'}, {"seed", 1, 0, 'x'}, {0, 0, 0, 0}};
    options.address.sin_family = AF_INET;
    options.address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int name; (name = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (name) {
        case 'p': options.address.sin_port = htons((uint16_t)atoi(optarg)); break;
        case 'f': read_requests(optarg); break;
        case 'c': options.connections = atoi(optarg); break;
        case 'r': options.rate = atof(optarg); break;
        case 's': options.window = (int64_t)(atof(optarg) * 1e9); break;
        case 'w': options.warmup = (int64_t)(atof(optarg) * 1e9); break;
        case 't': options.timeout = (int64_t)(atof(optarg) * 1e9); break;
        case 'e': options.expect = optarg; break;
        case 'b': options.expect_bytes = atoi(optarg); break;
        case 'x': random_state = strtoull(optarg, NULL, 10); break;
        default: exit(2);
        }
    errno = 0;
    if (!options.address.sin_port || !request_count || options.connections < 1 || options.window <= 0)
        die("--port, --requests, --connections and --seconds are needed");
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    connections = calloc((size_t)options.connections, sizeof *connections);
    spare = calloc((size_t)options.connections, sizeof *spare);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || !spare || poller < 0) die("out of memory");
    prctl(PR_SET_TIMERSLACK, 1000UL); /* ns; by default sleeps end up to 50 us late */
    print_result(run());
    return 0;
}
