/* reader: what this machine and the server leave to any client.
 *
 * It polls, reads, notes the time and sends the next request; it parses nothing, checks nothing and
 * keeps nothing but the times of each answer's first and last bytes.  A load generator that reaches its
 * rate is not what limits the comparison: the server is, or the kernel between both.
 *
 *   cc -O2 -o reader reader.c
 *   ./reader PORT STREAMS REQUESTS TOKENS > result.json
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FDS = 65536, READ_BYTES = 8192, REST_NS = 250000 };

typedef struct { int64_t sent, first; } Stream;

static Stream streams[FDS];
static double *ttft, *tpot;
static int asked, answered, wanted, tokens;
static char request[512];
static int request_bytes;

static int64_t now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }

static void die(const char *what) { perror(what); exit(1); }

static void ask(int fd) {
    if (asked == wanted) return;
    asked++;
    streams[fd] = (Stream){ .sent = now() };
    if (write(fd, request, request_bytes) != request_bytes) die("write");
}

static void hear(int fd) {
    char data[READ_BYTES];
    ssize_t got = read(fd, data, sizeof data);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) die("read");
    int64_t at = now();
    Stream *stream = &streams[fd];
    if (!stream->first) stream->first = at;
    if (got < 5 || memcmp(data + got - 5, "0\r\n\r\n", 5)) return;
    ttft[answered] = (stream->first - stream->sent) / 1e9;
    tpot[answered] = (at - stream->first) / 1e9 / (tokens - 1);
    answered++;
    ask(fd);
}

static int ascending(const void *a, const void *b) { double x = *(double *)a, y = *(double *)b; return (x > y) - (x < y); }

static double mean(const double *values, int count) {
    double sum = 0;
    for (int i = 0; i < count; i++) sum += values[i];
    return sum / count;
}

int main(int argc, char **argv) {
    if (argc != 5) { fprintf(stderr, "usage: reader PORT STREAMS REQUESTS TOKENS\n"); return 2; }
    int port = atoi(argv[1]), count = atoi(argv[2]);
    wanted = atoi(argv[3]), tokens = atoi(argv[4]);
    char body[128];
    int length = snprintf(body, sizeof body, "{\"model\":\"origin\",\"prompt\":[1,2,3],\"max_tokens\":%d,\"stream\":true}", tokens);
    request_bytes = snprintf(request, sizeof request, "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", length, body);
    ttft = calloc(wanted, sizeof *ttft), tpot = calloc(wanted, sizeof *tpot);
    struct epoll_event *events = calloc(count, sizeof *events);
    int *fds = calloc(count, sizeof *fds), poll = epoll_create1(0), one = 1;
    struct sockaddr_in where = { .sin_family = AF_INET, .sin_port = htons(port) };
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < count; i++) {
        int fd = fds[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || fd >= FDS || connect(fd, (void *)&where, sizeof where)) die("connect");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &(struct epoll_event){ .events = EPOLLIN, .data.fd = fd })) die("epoll_ctl");
    }
    int64_t began = now();
    for (int i = 0; i < count; i++) ask(fds[i]);
    while (answered < wanted) {
        int ready = epoll_wait(poll, events, count, 10000);
        if (ready <= 0) die("nothing for 10 s");
        for (int i = 0; i < ready; i++) hear(events[i].data.fd);
        nanosleep(&(struct timespec){ .tv_nsec = REST_NS }, NULL); /* waiting in epoll, it would be woken by every send */
    }
    double took = (now() - began) / 1e9;
    qsort(ttft, wanted, sizeof *ttft, ascending);
    printf("{\"ttft_mean\": %.6f, \"ttft_p50\": %.6f, \"ttft_p99\": %.6f, \"tpot_mean\": %.6f, \"tokens_per_second\": %.1f, \"requests\": %d}\n",
        mean(ttft, wanted), ttft[wanted / 2], ttft[(int)(wanted * 0.99)], mean(tpot, wanted),
        (double)wanted * tokens / took, answered);
    return 0;
}
