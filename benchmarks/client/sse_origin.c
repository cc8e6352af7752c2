/* sse_origin: an OpenAI-compatible streaming server with a known answer.
 *
 * It generates nothing.  Every request gets its first token exactly TTFT ms
 * after its last byte arrived (by the kernel's receive timestamp, so a backlog
 * here is this server's lateness and not the client's error) and each further
 * token ITL ms later: what a load generator reports can be held against what
 * was really sent.  One thread, epoll, one heap of deadlines: cheap enough that
 * the client is the bottleneck.
 *
 *   cc -O2 -o sse_origin sse_origin.c
 *   ./sse_origin --port 8100 --ttft-ms 200 --itl-ms 20
 *
 * POST /v1/completions, /v1/chat/completions   streamed; honours max_tokens, return_token_ids
 * GET  /health, /v1/models
 * GET  /stats     JSON: requests, tokens, aborted, peak, and how late (us) this
 *                 server itself was with first tokens: mean, p50, p99, max
 * POST /reset     zeroes the stats
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/net_tstamp.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FDS = 65536, LATE = 1 << 20 };

typedef struct {
    char *in; size_t len, cap, need;      /* request bytes; need = whole request, 0 until known */
    char *out; size_t olen, ocap, ooff;   /* bytes the kernel would not take yet */
    int chat, stream, ids, busy, left, total, prompt, gen, dead;
    int64_t arrived;                      /* of the newest bytes, CLOCK_REALTIME ns */
} Conn;
typedef struct { int64_t due; int fd, gen, first; } Due;

static Conn conns[FDS];
static Due *heap; static size_t n_heap, heap_cap;
static int ep, gens;
static int64_t ttft_ns = 200000000, itl_ns = 20000000;
static int default_tokens = 64;
static uint64_t n_requests, n_tokens, n_aborted, n_active, n_peak;
static uint32_t late[LATE]; static size_t n_late;

static int64_t now(void) { struct timespec t; clock_gettime(CLOCK_REALTIME, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }

static void push(Due d) {
    if (n_heap == heap_cap) heap = realloc(heap, (heap_cap = heap_cap ? heap_cap * 2 : 4096) * sizeof *heap);
    size_t i = n_heap++;
    for (; i && heap[(i - 1) / 2].due > d.due; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = d;
}

static Due pop(void) {
    Due top = heap[0], d = heap[--n_heap]; size_t i = 0, k;
    while ((k = 2 * i + 1) < n_heap) {
        if (k + 1 < n_heap && heap[k + 1].due < heap[k].due) k++;
        if (heap[k].due >= d.due) break;
        heap[i] = heap[k]; i = k;
    }
    heap[i] = d;
    return top;
}

static void drop(int fd) {
    Conn *c = &conns[fd];
    if (c->busy) { n_aborted++; n_active--; }
    c->busy = 0; c->gen = ++gens; c->len = c->need = 0; c->olen = c->ooff = 0; c->dead = 0;
    close(fd);
}

static void put(int fd, const char *b, size_t n) {
    Conn *c = &conns[fd];
    if (c->olen == c->ooff) {
        c->olen = c->ooff = 0;
        ssize_t w = send(fd, b, n, MSG_NOSIGNAL);
        if (w < 0) { if (errno != EAGAIN) { c->dead = 1; return; } w = 0; }
        b += w; n -= w;
        if (!n) return;
        struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.fd = fd};
        epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e);
    }
    if (c->olen + n > c->ocap) { c->ocap = (c->olen + n) * 2; c->out = realloc(c->out, c->ocap); }
    memcpy(c->out + c->olen, b, n); c->olen += n;
}

static void flush_out(int fd) {
    Conn *c = &conns[fd];
    ssize_t w = send(fd, c->out + c->ooff, c->olen - c->ooff, MSG_NOSIGNAL);
    if (w < 0) { if (errno != EAGAIN) c->dead = 1; return; }
    c->ooff += w;
    if (c->ooff == c->olen) {
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e);
    }
}

static void reply(int fd, const char *type, const char *body) {
    char b[4096];
    int n = snprintf(b, sizeof b, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n%s", type, strlen(body), body);
    put(fd, b, n);
}

static int chunk(char *b, const char *json) { return sprintf(b, "%zx\r\ndata: %s\n\n\r\n", strlen(json) + 8, json); }

static void token(int fd, int first) {
    Conn *c = &conns[fd];
    char b[2048], j[1024]; int n = 0;
    if (first) n += sprintf(b, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n");
    c->left--;
    const char *fin = c->left ? "null" : "\"length\"";
    if (c->chat) sprintf(j, "{\"id\":\"cmpl-%d\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"origin\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\" tok\"},\"finish_reason\":%s}]}", c->gen, fin);
    else if (c->ids) sprintf(j, "{\"id\":\"cmpl-%d\",\"object\":\"text_completion\",\"created\":1,\"model\":\"origin\",\"choices\":[{\"index\":0,\"text\":\" tok\",\"token_ids\":[%d],\"finish_reason\":%s}]}", c->gen, 1000 + c->left % 1000, fin);
    else sprintf(j, "{\"id\":\"cmpl-%d\",\"object\":\"text_completion\",\"created\":1,\"model\":\"origin\",\"choices\":[{\"index\":0,\"text\":\" tok\",\"finish_reason\":%s}]}", c->gen, fin);
    n += chunk(b + n, j);
    n_tokens++;
    if (!c->left) {
        sprintf(j, "{\"id\":\"cmpl-%d\",\"object\":\"%s\",\"created\":1,\"model\":\"origin\",\"choices\":[],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d}}",
                c->gen, c->chat ? "chat.completion.chunk" : "text_completion", c->prompt, c->total, c->prompt + c->total);
        n += chunk(b + n, j);
        n += chunk(b + n, "[DONE]");
        n += sprintf(b + n, "0\r\n\r\n");
        c->busy = 0; n_active--; n_requests++;
    }
    put(fd, b, n);
}

static long field(const char *b, const char *key, long dflt) {
    const char *p = strstr(b, key);
    if (!p) return dflt;
    p += strlen(key);
    while (*p == ' ' || *p == ':' || *p == '"') p++;
    if (!strncmp(p, "true", 4)) return 1;
    if (!strncmp(p, "false", 5)) return 0;
    return *p >= '0' && *p <= '9' ? strtol(p, 0, 10) : dflt;
}

static int by_value(const void *a, const void *b) { uint32_t x = *(uint32_t *)a, y = *(uint32_t *)b; return (x > y) - (x < y); }

static void stats(int fd) {
    char b[512]; double sum = 0; size_t n = n_late < LATE ? n_late : LATE;
    uint32_t *s = malloc((n + 1) * sizeof *s); memcpy(s, late, n * sizeof *s);
    qsort(s, n, sizeof *s, by_value);
    for (size_t i = 0; i < n; i++) sum += s[i];
    sprintf(b, "{\"requests\":%lu,\"tokens\":%lu,\"aborted\":%lu,\"active\":%lu,\"peak\":%lu,\"late_us\":{\"mean\":%.1f,\"p50\":%u,\"p99\":%u,\"max\":%u}}",
            n_requests, n_tokens, n_aborted, n_active, n_peak, n ? sum / n : 0, n ? s[n / 2] : 0, n ? s[n * 99 / 100] : 0, n ? s[n - 1] : 0);
    free(s); reply(fd, "application/json", b);
}

static void serve(int fd) {                       /* c->in holds one whole request */
    Conn *c = &conns[fd];
    char saved = c->in[c->need]; c->in[c->need] = 0;
    char *body = strstr(c->in, "\r\n\r\n") + 4;
    c->chat = !strncmp(c->in, "POST /v1/chat/completions", 25);
    if (c->chat || !strncmp(c->in, "POST /v1/completions", 20)) {
        c->total = field(body, "\"max_completion_tokens\"", field(body, "\"max_tokens\"", default_tokens));
        if (c->total < 1) c->total = 1;
        c->stream = field(body, "\"stream\"", 0);
        c->ids = field(body, "\"return_token_ids\"", 0);
        c->prompt = (int)((c->need - (body - c->in)) / 4);
        const char *p = strstr(body, "\"prompt\"");    /* token ids: count them */
        if (p && (p = strchr(p, '['))) { c->prompt = 1; for (; *p && *p != ']'; p++) c->prompt += *p == ','; }
        c->left = c->total; c->busy = 1; c->gen = ++gens;
        if (++n_active > n_peak) n_peak = n_active;
        push((Due){c->arrived + ttft_ns, fd, c->gen, 1});
    } else if (!strncmp(c->in, "GET /stats", 10)) stats(fd);
    else if (!strncmp(c->in, "POST /reset", 11)) { n_requests = n_tokens = n_aborted = n_peak = 0; n_late = 0; reply(fd, "text/plain", "ok"); }
    else if (!strncmp(c->in, "GET /v1/models", 14)) reply(fd, "application/json", "{\"object\":\"list\",\"data\":[{\"id\":\"origin\",\"object\":\"model\",\"created\":1,\"owned_by\":\"origin\",\"max_model_len\":1048576}]}");
    else if (!strncmp(c->in, "GET /health", 11) || !strncmp(c->in, "GET / ", 6)) reply(fd, "text/plain", "ok");
    else { const char *r = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"; put(fd, r, strlen(r)); }
    c->in[c->need] = saved;
    memmove(c->in, c->in + c->need, c->len - c->need); c->len -= c->need; c->need = 0;
}

static void readable(int fd) {
    Conn *c = &conns[fd];
    for (;;) {
        if (c->cap - c->len < 65537) { c->cap = c->cap ? c->cap * 2 : 131072; c->in = realloc(c->in, c->cap); }
        char control[256];
        struct iovec io = {c->in + c->len, c->cap - c->len - 1};
        struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t r = recvmsg(fd, &m, 0);
        if (r == 0 || (r < 0 && errno != EAGAIN)) { drop(fd); return; }
        if (r < 0) break;
        c->len += r; c->arrived = now();
        for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h))
            if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_TIMESTAMPING) {
                struct timespec t; memcpy(&t, CMSG_DATA(h), sizeof t);
                if (t.tv_sec) c->arrived = t.tv_sec * 1000000000LL + t.tv_nsec;
            }
    }
    while (!c->busy && c->len) {
        if (!c->need) {
            c->in[c->len] = 0;
            char *end = strstr(c->in, "\r\n\r\n"), *cl;
            if (!end) return;
            *end = 0; cl = strcasestr(c->in, "\r\nContent-Length:");
            size_t n = cl ? strtoul(cl + 17, 0, 10) : 0;
            if (strcasestr(c->in, "\r\nExpect: 100")) put(fd, "HTTP/1.1 100 Continue\r\n\r\n", 25);
            *end = '\r'; c->need = end + 4 - c->in + n;
        }
        if (c->len < c->need) return;
        serve(fd);
    }
}

static void due(int64_t t) {
    while (n_heap && heap[0].due <= t) {
        Due d = pop(); Conn *c = &conns[d.fd];
        if (c->gen != d.gen || !c->busy) continue;
        if (d.first && !c->stream) {                     /* one answer, at its first token's time */
            char b[512]; c->busy = 0; n_active--; n_requests++; n_tokens += c->total;
            sprintf(b, "{\"id\":\"cmpl-%d\",\"object\":\"text_completion\",\"created\":1,\"model\":\"origin\",\"choices\":[{\"index\":0,\"text\":\" tok\",\"message\":{\"role\":\"assistant\",\"content\":\" tok\"},\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d}}", c->gen, c->prompt, c->total, c->prompt + c->total);
            reply(d.fd, "application/json", b); continue;
        }
        if (d.first) { int64_t l = (now() - d.due) / 1000; late[n_late++ % LATE] = l < 0 ? 0 : (uint32_t)l; }
        token(d.fd, d.first);
        while (c->busy && !itl_ns && !c->dead) token(d.fd, 0);
        if (c->dead) { drop(d.fd); continue; }
        if (c->busy) push((Due){d.due + itl_ns, d.fd, d.gen, 0});
        else if (c->len) readable(d.fd);
    }
}

int main(int argc, char **argv) {
    int port = 8100;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--port")) port = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--ttft-ms")) ttft_ns = (int64_t)(atof(argv[i + 1]) * 1e6);
        else if (!strcmp(argv[i], "--itl-ms")) itl_ns = (int64_t)(atof(argv[i + 1]) * 1e6);
        else if (!strcmp(argv[i], "--tokens")) default_tokens = atoi(argv[i + 1]);
        else { fprintf(stderr, "sse_origin: unknown option %s\n", argv[i]); return 2; }
    }
    signal(SIGPIPE, SIG_IGN);
    int ls = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    int stamps = SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE;
    setsockopt(ls, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(ls, (void *)&a, sizeof a) || listen(ls, 65535)) { perror("sse_origin"); return 1; }
    ep = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = ls}, ev[512];
    epoll_ctl(ep, EPOLL_CTL_ADD, ls, &e);
    for (;;) {
        due(now());
        struct timespec ts, *tp = 0;
        if (n_heap) { int64_t w = heap[0].due - now(); if (w < 0) w = 0; ts = (struct timespec){w / 1000000000, w % 1000000000}; tp = &ts; }
        int n = epoll_pwait2(ep, ev, 512, tp, 0);
        for (int i = 0; i < n; i++) {
            int fd = ev[i].data.fd;
            if (fd == ls) {
                while ((fd = accept4(ls, 0, 0, SOCK_NONBLOCK)) >= 0) {
                    if (fd >= FDS) { close(fd); continue; }
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &stamps, sizeof stamps);
                    e = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
                }
                continue;
            }
            if (ev[i].events & EPOLLOUT) flush_out(fd);
            if (ev[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(fd);
        }
    }
}
