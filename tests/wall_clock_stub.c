/* A wall clock that is set while a process runs, as by NTP or by hand: loaded in front of the C library.
 *
 * From WALL_AFTER seconds on, and again as often, the wall clock jumps by WALL_JUMP seconds: forth, back, forth.
 * The kernel's stamps on what a socket received jump with it, as they do on a machine. The monotonic clock is as it is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#define STAMPING 37

static double setting(const char *name) {
    const char *value = getenv(name);
    return value ? atof(value) : 0;
}

static long jump_at(long monotonic_s_times_1000) {
    static long began = 0;
    double after = setting("WALL_AFTER");
    if (!began)
        began = monotonic_s_times_1000;
    if (after <= 0)
        return 0;
    return ((long)((double)(monotonic_s_times_1000 - began) / 1000 / after)) % 2 ? (long)setting("WALL_JUMP") : 0;
}

static int real_clock(clockid_t which, struct timespec *out) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    return real(which, out);
}

static long jump(void) {
    struct timespec now;
    real_clock(CLOCK_MONOTONIC, &now);
    return jump_at(now.tv_sec * 1000 + now.tv_nsec / 1000000);
}

int clock_gettime(clockid_t which, struct timespec *out) {
    int code = real_clock(which, out);
    if (!code && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
        out->tv_sec += jump();
    return code;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}

ssize_t recvmsg(int socket, struct msghdr *message, int flags) {
    static ssize_t (*real)(int, struct msghdr *, int);
    if (!real)
        real = (ssize_t(*)(int, struct msghdr *, int))dlsym(RTLD_NEXT, "recvmsg");
    ssize_t size = real(socket, message, flags);
    if (size >= 0)
        for (struct cmsghdr *one = CMSG_FIRSTHDR(message); one; one = CMSG_NXTHDR(message, one))
            if (one->cmsg_level == SOL_SOCKET && one->cmsg_type == STAMPING) {
                struct timespec stamp;
                memcpy(&stamp, CMSG_DATA(one), sizeof stamp);
                if (stamp.tv_sec)
                    stamp.tv_sec += jump();
                memcpy(CMSG_DATA(one), &stamp, sizeof stamp);
            }
    return size;
}
