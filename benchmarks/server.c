/* The reference: a thread for each client, in C. It is what this model can do on this machine, so
 * every other figure is given as a ratio to it.
 *
 *   server [--port PORT] [--epoll] [echo | sleep MS | compute MS | rounds N]
 *   server calibrate
 *
 * Whatever a client sends comes back, after the wait or the work for what one recv() returned.
 * Prints "listening on 127.0.0.1:PORT" once it does. `compute MS` is the work that takes so long
 * when nobody disturbs; that is measured at the start, and comes out a little different each time.
 * What is compared is to be given the same `rounds N`; `calibrate` prints how many take 1 ms.
 *
 * --epoll serves echo from one loop in one thread instead. It is no reference for a thread per
 * client: it shows how much the load generator is able to ask for.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 64 * 1024, BACKLOG = 4096, EVENTS = 512 };

/* The buffer is on the stack. Only pages that were touched count as memory: an idle client that
 * sent small messages costs the two or three pages its frames and the buffer's beginning lie on. */
enum { STACK = BUFFER + 64 * 1024 };

enum handler { ECHO, SLEEP, COMPUTE };

static enum handler handler = ECHO;
static struct timespec pause_time;
static uint64_t iterations;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void usage(void)
{
    fputs("usage: server [--port PORT] [--epoll] [echo | sleep MS | compute MS | rounds N]\n"
          "       server calibrate\n",
          stderr);
    exit(2);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void compute(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        sum = sum * 31 + i;
        __asm__ volatile("" : "+r"(sum)); /* or nobody wants the result, and nothing is computed */
    }
}

/* How many iterations take that long when nobody disturbs: a fixed amount of work, as the Python
 * servers have, so that two threads on one core take twice as long. The fastest of some trials. */
static uint64_t calibrate(double milliseconds)
{
    const uint64_t count = 1000000;
    uint64_t fastest = UINT64_MAX;
    for (int trial = 0; trial < 100; trial++) {
        uint64_t start = now_ns();
        compute(count);
        uint64_t taken = now_ns() - start;
        if (taken < fastest)
            fastest = taken;
    }
    return (uint64_t)(milliseconds * 1e6 * (double)count / (double)fastest);
}

static void handle(void)
{
    if (handler == SLEEP)
        nanosleep(&pause_time, NULL);
    else if (handler == COMPUTE)
        compute(iterations);
}

static int send_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

static void *serve_client(void *argument)
{
    int fd = (int)(intptr_t)argument;
    char buffer[BUFFER];
    for (;;) {
        ssize_t n = recv(fd, buffer, sizeof buffer, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        handle();
        if (send_all(fd, buffer, (size_t)n) < 0)
            break;
    }
    close(fd);
    return NULL;
}

static int accept_client(int listener, int flags)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | flags);
    if (fd >= 0) {
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        usleep(10000); /* the client stays in the queue; somebody will leave */
    }
    return fd;
}

static void serve_with_threads(int listener)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK);
    for (;;) {
        int fd = accept_client(listener, 0);
        pthread_t thread;
        if (fd < 0)
            continue;
        if (pthread_create(&thread, &attributes, serve_client, (void *)(intptr_t)fd) != 0)
            close(fd);
    }
}

/* What a client of the loop has not taken yet. Nothing is read from it until it has. */
struct client {
    int fd;
    char *rest;
    size_t size;
    size_t sent;
};

static void drop(struct client *client)
{
    close(client->fd);
    free(client->rest);
    free(client);
}

static void watch(int loop, int operation, struct client *client, uint32_t what)
{
    struct epoll_event event = {.events = what, .data.ptr = client};
    if (epoll_ctl(loop, operation, client->fd, &event) < 0)
        die("epoll_ctl");
}

static void keep_rest(int loop, struct client *client, const char *data, size_t size)
{
    client->rest = malloc(size);
    if (client->rest == NULL)
        die("malloc");
    memcpy(client->rest, data, size);
    client->size = size;
    client->sent = 0;
    watch(loop, EPOLL_CTL_MOD, client, EPOLLOUT);
}

static void on_readable(int loop, struct client *client)
{
    static char buffer[BUFFER];
    ssize_t n = recv(client->fd, buffer, sizeof buffer, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN)) {
        drop(client);
        return;
    }
    if (n < 0)
        return;
    ssize_t sent = send(client->fd, buffer, (size_t)n, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN)
        drop(client);
    else if (sent < 0)
        keep_rest(loop, client, buffer, (size_t)n);
    else if (sent < n)
        keep_rest(loop, client, buffer + sent, (size_t)(n - sent));
}

static void on_writable(int loop, struct client *client)
{
    ssize_t n = send(client->fd, client->rest + client->sent, client->size - client->sent,
                     MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) {
        drop(client);
        return;
    }
    client->sent += n > 0 ? (size_t)n : 0;
    if (client->sent == client->size) {
        free(client->rest);
        client->rest = NULL;
        watch(loop, EPOLL_CTL_MOD, client, EPOLLIN);
    }
}

static void serve_with_epoll(int listener)
{
    struct epoll_event events[EVENTS];
    struct client acceptor = {.fd = listener};
    int loop = epoll_create1(EPOLL_CLOEXEC);
    if (loop < 0)
        die("epoll_create1");
    watch(loop, EPOLL_CTL_ADD, &acceptor, EPOLLIN);
    for (;;) {
        int count = epoll_wait(loop, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct client *client = events[i].data.ptr;
            if (client != &acceptor) {
                (client->rest ? on_writable : on_readable)(loop, client);
                continue;
            }
            int fd = accept_client(listener, SOCK_NONBLOCK);
            if (fd < 0)
                continue;
            client = calloc(1, sizeof *client);
            if (client == NULL)
                die("calloc");
            client->fd = fd;
            watch(loop, EPOLL_CTL_ADD, client, EPOLLIN);
        }
    }
}

static int listen_on(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    socklen_t size = sizeof address;
    int on = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, size) < 0)
        die("bind");
    if (listen(fd, BACKLOG) < 0)
        die("listen");
    if (getsockname(fd, (struct sockaddr *)&address, &size) < 0)
        die("getsockname");
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static double number_in(const char *text)
{
    char *end;
    if (text == NULL)
        usage();
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= 0 && value <= 1e15))
        usage();
    return value;
}

int main(int argc, char **argv)
{
    int with_epoll = 0;
    long port = 0;
    int i = 1;
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i++) {
        if (strcmp(argv[i], "--epoll") == 0) {
            with_epoll = 1;
        } else if (strcmp(argv[i], "--port") == 0 && i + 1 < argc) {
            char *end;
            port = strtol(argv[++i], &end, 10);
            if (*end != '\0' || port < 0 || port > 65535)
                usage();
        } else {
            usage();
        }
    }
    const char *name = i < argc ? argv[i++] : "echo";
    if (strcmp(name, "sleep") == 0) {
        double wanted = number_in(i < argc ? argv[i++] : NULL);
        handler = SLEEP;
        pause_time.tv_sec = (time_t)(wanted / 1e3);
        pause_time.tv_nsec = (long)((wanted - 1e3 * (double)pause_time.tv_sec) * 1e6);
    } else if (strcmp(name, "compute") == 0) {
        handler = COMPUTE;
        iterations = calibrate(number_in(i < argc ? argv[i++] : NULL));
    } else if (strcmp(name, "rounds") == 0) {
        handler = COMPUTE;
        iterations = (uint64_t)number_in(i < argc ? argv[i++] : NULL);
    } else if (strcmp(name, "calibrate") == 0) {
        printf("%llu\n", (unsigned long long)calibrate(1));
        return 0;
    } else if (strcmp(name, "echo") != 0) {
        usage();
    }
    if (i < argc || (with_epoll && handler != ECHO))
        usage();

    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    int listener = listen_on((uint16_t)port);
    if (with_epoll)
        serve_with_epoll(listener);
    else
        serve_with_threads(listener);
    return 0;
}
