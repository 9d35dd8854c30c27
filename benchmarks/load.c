/* The load generator: many clients in one process, all from one epoll loop for each thread.
 *
 *   load SCENARIO --port PORT [--clients N] [--busy M] [--size BYTES] [--seconds D] [--warmup W]
 *        [--threads T] [--host ADDRESS]
 *
 *   echo     N clients; each sends a message, waits for all of the reply, sends the next one.
 *            Large messages are read while they are written, so neither end can lock up.
 *   connect  N at a time: connect, one exchange, close, again.
 *   idle     N clients that are served once and then do nothing. Writes "ready" to standard error
 *            when all are, waits for the end of standard input, and then lets M of them, spread
 *            evenly, run as in echo.
 *   broadcast  N clients, all of whom get what each of them sends. M of them, spread evenly, send a
 *            message, wait until all N have received it, and send the next one: one such round is a
 *            request. A message begins with the number of its sender and its own.
 *
 * A closed loop: a server that is slow is asked less often. Therefore the oldest request that was
 * open at the end ("pending_us") and the clients that got nothing while it was measured
 * ("starved") or nothing at all ("unanswered") are in the result as well as the percentiles.
 *
 * Every byte of every reply is compared. A message is a window in a pool of random bytes, and its
 * place depends on the client and on the number of the message: a reply that belongs to another
 * client, to an earlier message, or that is shifted by a byte, does not match.
 *
 * The client closes first, as clients do, so it is here that connections stay in TIME_WAIT, for a
 * minute, and each takes a port. To cut them short with SO_LINGER would reset connections, and the
 * servers would be measured in their error handling. Instead the clients' addresses go round in
 * 127.1.0.0/24: each address has ports of its own.
 *
 * One line of JSON on standard output. The exit status is 1 if there was an error or a mismatch.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
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

#define SECOND UINT64_C(1000000000)

enum {
    WINDOWS = 1 << 16,       /* places in the pool where a message may begin */
    LARGEST = 16 << 20,      /* the largest message */
    BUFFER = 128 * 1024,     /* what is received at once */
    EVENTS = 256,            /* what is taken from the loop at once */
    CONNECTING = 128,        /* clients that a thread lets connect at once, below any backlog */
    SOURCES = 250,           /* addresses that the clients come from */
};
static const uint64_t OPENING_LIMIT = 120 * SECOND; /* until all clients have been served once */
static const uint64_t GRACE = 10 * SECOND; /* for replies still on their way at the end */

/* Latencies are counted in buckets, 128 for each power of two: what is read from them is at most
 * 0.4 % off. */
enum { SUB_BITS = 7, SUB = 1 << SUB_BITS, BUCKETS = (64 - SUB_BITS + 1) * SUB };

enum scenario { ECHO, CONNECT, IDLE, BROADCAST };
enum { HEADER = 2 * sizeof(uint32_t) }; /* of a message that is broadcast */

struct client {
    int fd;             /* -1: closed */
    uint32_t id;
    uint32_t sequence;  /* of the message that is under way */
    uint32_t sent;      /* bytes of it */
    uint32_t received;  /* bytes of its reply; or the clients that have received it */
    uint32_t held;      /* bytes of a message of others, in `part` */
    char *part, *whole; /* for messages that are broadcast; `whole` is the client's own */
    uint8_t busy;       /* sends messages while it is measured */
    uint8_t waiting;    /* for a reply */
    uint8_t answered;   /* ever */
    uint8_t fed;        /* got a reply while it was measured */
    uint64_t started;   /* when the message that is under way, or the connection, began */
};

struct worker {
    pthread_t thread;
    int loop;
    struct client *clients;
    int count;
    int waiting;        /* clients that wait for a reply */
    uint32_t source;    /* counts connections, to choose their addresses */
    uint64_t replies;   /* all of them, also those before and after what is measured */
    uint64_t requests, errors, mismatches, pending_ns, max_ns;
    uint64_t histogram[BUCKETS];
    char buffer[BUFFER];
};

static enum scenario scenario;
static struct sockaddr_in server;
static int clients = 10, busy = -1, threads = 1;
static uint32_t size = 64;
static double seconds = 5, warmup = 1;

static char *pool;
static pthread_barrier_t barrier;
static uint64_t begin, end; /* of what is measured; set by main between two barriers */
static pthread_once_t first_error = PTHREAD_ONCE_INIT;
static const char *error_text;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void usage(const char *what)
{
    fprintf(stderr, "load: %s\n", what);
    exit(2);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static int bucket_of(uint64_t value)
{
    if (value < SUB)
        return (int)value;
    int shift = 63 - __builtin_clzll(value) - SUB_BITS;
    return (shift << SUB_BITS) + (int)(value >> shift);
}

static uint64_t middle_of(int bucket)
{
    if (bucket < 2 * SUB)
        return (uint64_t)bucket;
    int shift = (bucket >> SUB_BITS) - 1;
    uint64_t width = UINT64_C(1) << shift;
    return (uint64_t)((bucket & (SUB - 1)) + SUB) * width + width / 2;
}

static void fill_pool(void)
{
    uint64_t state = UINT64_C(0x9E3779B97F4A7C15);
    pool = malloc(WINDOWS + (size_t)size);
    if (pool == NULL)
        die("malloc");
    for (size_t i = 0; i < WINDOWS + (size_t)size; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        pool[i] = (char)(state >> 32);
    }
}

/* The multipliers are odd, so neighbours in either number never share a window. */
static const char *content(uint32_t id, uint32_t sequence)
{
    return pool + ((id * 40503u + sequence * 30011u) & (WINDOWS - 1));
}

static const char *message(const struct client *client)
{
    return scenario == BROADCAST ? client->whole : content(client->id, client->sequence);
}

static void print_error(void)
{
    fprintf(stderr, "load: first error: %s\n", error_text);
}

static void settle(struct worker *worker, struct client *client)
{
    if (client->waiting) {
        client->waiting = 0;
        worker->waiting--;
    }
}

static void hang_up(struct worker *worker, struct client *client)
{
    settle(worker, client);
    if (client->fd >= 0)
        close(client->fd);
    client->fd = -1;
}

static void fail(struct worker *worker, struct client *client, uint64_t *counter, const char *text)
{
    (*counter)++;
    error_text = text;
    pthread_once(&first_error, print_error);
    hang_up(worker, client);
}

static void send_more(struct worker *worker, struct client *client)
{
    while (client->sent < size) {
        ssize_t n = send(client->fd, message(client) + client->sent, size - client->sent,
                         MSG_NOSIGNAL);
        if (n >= 0) {
            client->sent += (uint32_t)n;
        } else if (errno == EAGAIN) {
            return;
        } else if (errno != EINTR) {
            fail(worker, client, &worker->errors, strerror(errno));
            return;
        }
    }
}

static void next_message(struct worker *worker, struct client *client, uint64_t now)
{
    client->sequence++;
    client->sent = 0;
    client->received = 0;
    client->started = now;
    client->waiting = 1;
    worker->waiting++;
    if (scenario == BROADCAST) {
        memcpy(client->whole, content(client->id, client->sequence), size);
        memcpy(client->whole, &client->id, sizeof client->id);
        memcpy(client->whole + sizeof client->id, &client->sequence, sizeof client->sequence);
    }
}

/* Begin to connect. The first message follows as soon as the socket is writable. */
static void dial(struct worker *worker, struct client *client)
{
    struct sockaddr_in source = {.sin_family = AF_INET};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = client};
    int on = 1;
    uint64_t now = now_ns();
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    client->fd = fd;
    next_message(worker, client, now);
    /* Without this option bind() would choose the port, and it does not know the other end. */
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    source.sin_addr.s_addr = htonl(0x7F010001u + worker->source++ % SOURCES);
    if (ntohl(server.sin_addr.s_addr) >> 24 == 127
        && bind(fd, (struct sockaddr *)&source, sizeof source) < 0)
        die("bind");
    if (connect(fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) {
        fail(worker, client, &worker->errors, strerror(errno));
        return;
    }
    if (epoll_ctl(worker->loop, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
}

static void record(struct worker *worker, struct client *client, uint64_t now)
{
    client->answered = 1;
    worker->replies++;
    if (begin == 0 || now < begin || now >= end)
        return;
    uint64_t taken = now - client->started;
    client->fed = 1;
    worker->requests++;
    worker->histogram[bucket_of(taken)]++;
    if (taken > worker->max_ns)
        worker->max_ns = taken;
}

/* The whole reply is there. */
static void on_reply(struct worker *worker, struct client *client)
{
    uint64_t now = now_ns();
    record(worker, client, now);
    settle(worker, client);
    if (begin == 0 || now >= end || !client->busy)
        return;
    if (scenario != CONNECT) {
        next_message(worker, client, now);
    } else {
        hang_up(worker, client);
        dial(worker, client);
    }
}

/* Returns how many bytes have been received; 0 if there are none, or if the client has failed. */
static size_t receive(struct worker *worker, struct client *client, char *buffer, size_t most)
{
    ssize_t n;
    do
        n = recv(client->fd, buffer, most, 0);
    while (n < 0 && errno == EINTR);
    if (n == 0 || (n < 0 && errno != EAGAIN)) {
        const char *text = n < 0 ? strerror(errno) : "the server closed the connection";
        fail(worker, client, &worker->errors, text);
    }
    return n > 0 ? (size_t)n : 0;
}

static void receive_more(struct worker *worker, struct client *client)
{
    for (;;) {
        size_t n = receive(worker, client, worker->buffer, BUFFER);
        if (n == 0)
            return;
        if (!client->waiting || n > client->sent - client->received
            || memcmp(worker->buffer, message(client) + client->received, n) != 0) {
            fail(worker, client, &worker->mismatches, "a reply differs from its message");
            return;
        }
        client->received += (uint32_t)n;
        if (client->received == size) {
            on_reply(worker, client);
            return; /* in a closed loop the reply is all there can be; more would be an event */
        }
        if (n < BUFFER)
            return; /* edge-triggered, but a short read has emptied it: more is another event */
    }
}

/* A whole message of any client has arrived. Until all clients are connected, its sender waits for
 * its own copy alone. Later, messages from before do not count. */
static void on_broadcast(struct worker *worker, struct client *client, const char *data)
{
    uint32_t id, sequence;
    memcpy(&id, data, sizeof id);
    memcpy(&sequence, data + sizeof id, sizeof sequence);
    if (id >= (uint32_t)clients
        || memcmp(data + HEADER, content(id, sequence) + HEADER, size - HEADER) != 0) {
        fail(worker, client, &worker->mismatches, "a message differs from what was sent");
        return;
    }
    struct client *sender = &worker->clients[id];
    if (!sender->waiting || sequence != sender->sequence || (begin == 0 && sender != client))
        return;
    if (begin == 0 || ++sender->received == (uint32_t)clients) {
        on_reply(worker, sender);
        if (sender->waiting)
            send_more(worker, sender);
    }
}

static void receive_broadcasts(struct worker *worker, struct client *client)
{
    for (;;) {
        char *buffer = worker->buffer;
        size_t held = client->held, at = 0;
        memcpy(buffer, client->part, held);
        size_t n = receive(worker, client, buffer + held, BUFFER - held);
        if (n == 0)
            return;
        for (; held + n - at >= size && client->fd >= 0; at += size)
            on_broadcast(worker, client, buffer + at);
        client->held = (uint32_t)(held + n - at);
        memcpy(client->part, buffer + at, client->held < size ? client->held : 0);
        if (client->fd < 0 || n < BUFFER - held)
            return;
    }
}

static void turn(struct worker *worker, int timeout)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(worker->loop, events, EVENTS, timeout);
    for (int i = 0; i < count; i++) {
        struct client *client = events[i].data.ptr;
        if (client->fd >= 0 && events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))
            (scenario == BROADCAST ? receive_broadcasts : receive_more)(worker, client);
        if (client->fd >= 0 && client->waiting)
            send_more(worker, client);
    }
}

/* A few at a time, so that no backlog is full and no SYN is lost: this is not what is measured. */
static void open_all(struct worker *worker)
{
    uint64_t limit = now_ns() + OPENING_LIMIT;
    int opened = 0;
    while ((opened < worker->count || worker->waiting > 0) && now_ns() < limit) {
        while (opened < worker->count && worker->waiting < CONNECTING)
            dial(worker, &worker->clients[opened++]);
        turn(worker, 100);
    }
    for (int i = 0; i < worker->count; i++)
        if (worker->clients[i].waiting)
            fail(worker, &worker->clients[i], &worker->errors, "no reply to the first message");
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    if (scenario != CONNECT)
        open_all(worker);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);

    for (int i = 0; i < worker->count; i++) {
        struct client *client = &worker->clients[i];
        if (scenario == CONNECT) {
            dial(worker, client);
        } else if (client->busy && client->fd >= 0) {
            next_message(worker, client, now_ns());
            send_more(worker, client);
        }
    }
    for (uint64_t now = now_ns(); now < end && worker->waiting > 0; now = now_ns())
        turn(worker, (int)((end - now) / 1000000) + 1);
    for (int i = 0; i < worker->count; i++) {
        struct client *client = &worker->clients[i];
        if (client->waiting && client->started < end && end - client->started > worker->pending_ns)
            worker->pending_ns = end - client->started;
    }
    while (worker->waiting > 0 && now_ns() < end + GRACE)
        turn(worker, 100);
    return NULL;
}

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
           + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void sleep_until(uint64_t moment)
{
    struct timespec t = {.tv_sec = (time_t)(moment / SECOND), .tv_nsec = (long)(moment % SECOND)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        continue;
}

static void wait_for_end_of_input(void)
{
    char byte;
    while (read(STDIN_FILENO, &byte, 1) > 0)
        continue;
}

/* In microseconds; 0 if there was no request. A bucket's middle may be above all that is in it. */
static double percentile(const uint64_t *histogram, uint64_t total, uint64_t longest,
                         uint64_t per_mille)
{
    uint64_t rank = (total * per_mille + 999) / 1000, seen = 0;
    int i = 0;
    while (i < BUCKETS - 1 && (seen += histogram[i]) < rank)
        i++;
    return (double)(middle_of(i) < longest ? middle_of(i) : longest) / 1e3;
}

static int report(struct worker *workers, double cpu)
{
    static const char *const names[] = {"echo", "connect", "idle", "broadcast"};
    static uint64_t histogram[BUCKETS];
    uint64_t replies = 0, requests = 0, errors = 0, mismatches = 0, pending = 0, longest = 0;
    int starved = 0, unanswered = 0;
    for (int t = 0; t < threads; t++) {
        struct worker *worker = &workers[t];
        replies += worker->replies;
        requests += worker->requests;
        errors += worker->errors;
        mismatches += worker->mismatches;
        pending = worker->pending_ns > pending ? worker->pending_ns : pending;
        longest = worker->max_ns > longest ? worker->max_ns : longest;
        for (int i = 0; i < BUCKETS; i++)
            histogram[i] += worker->histogram[i];
        for (int i = 0; i < worker->count; i++) {
            starved += worker->clients[i].busy && !worker->clients[i].fed;
            unanswered += !worker->clients[i].answered;
        }
    }
    printf("{\"scenario\": \"%s\", \"clients\": %d, \"busy\": %d, \"size\": %u, "
           "\"threads\": %d, \"seconds\": %.3f, \"replies\": %llu, \"requests\": %llu, "
           "\"requests_per_s\": %.1f, \"errors\": %llu, \"mismatches\": %llu, "
           "\"starved\": %d, \"unanswered\": %d, \"p50_us\": %.1f, \"p90_us\": %.1f, "
           "\"p99_us\": %.1f, \"p99_9_us\": %.1f, \"max_us\": %.1f, "
           "\"pending_us\": %.1f, \"cpu_s\": %.3f}\n",
           names[scenario], clients, busy, size, threads, seconds, (unsigned long long)replies,
           (unsigned long long)requests,
           seconds > 0 ? (double)requests / seconds : 0, (unsigned long long)errors,
           (unsigned long long)mismatches, starved, unanswered,
           percentile(histogram, requests, longest, 500),
           percentile(histogram, requests, longest, 900),
           percentile(histogram, requests, longest, 990),
           percentile(histogram, requests, longest, 999),
           (double)longest / 1e3, (double)pending / 1e3, cpu);
    return errors > 0 || mismatches > 0;
}

static double number(const char *name, const char *text, double low, double high)
{
    char *rest;
    double value = text ? strtod(text, &rest) : 0;
    if (text == NULL || rest == text || *rest != '\0' || !(value >= low && value <= high)) {
        fprintf(stderr, "load: %s wants a number from %g to %g\n", name, low, high);
        exit(2);
    }
    return value;
}

static void parse(int argc, char **argv)
{
    if (argc < 2)
        usage("echo, connect, idle or broadcast?");
    if (strcmp(argv[1], "echo") == 0)
        scenario = ECHO;
    else if (strcmp(argv[1], "connect") == 0)
        scenario = CONNECT;
    else if (strcmp(argv[1], "idle") == 0)
        scenario = IDLE;
    else if (strcmp(argv[1], "broadcast") == 0)
        scenario = BROADCAST;
    else
        usage("echo, connect, idle or broadcast?");
    server.sin_family = AF_INET;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 2; i < argc; i += 2) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(name, "--port") == 0)
            server.sin_port = htons((uint16_t)number(name, value, 1, 65535));
        else if (strcmp(name, "--clients") == 0)
            clients = (int)number(name, value, 1, 1000000);
        else if (strcmp(name, "--busy") == 0)
            busy = (int)number(name, value, 0, 1000000);
        else if (strcmp(name, "--size") == 0)
            size = (uint32_t)number(name, value, 1, LARGEST);
        else if (strcmp(name, "--seconds") == 0)
            seconds = number(name, value, 0, 86400);
        else if (strcmp(name, "--warmup") == 0)
            warmup = number(name, value, 0, 3600);
        else if (strcmp(name, "--threads") == 0)
            threads = (int)number(name, value, 1, 256);
        else if (strcmp(name, "--host") != 0)
            usage("no such option");
        else if (value == NULL || inet_pton(AF_INET, value, &server.sin_addr) != 1)
            usage("--host wants an IPv4 address");
    }
    if (server.sin_port == 0)
        usage("--port is missing");
    if (scenario == BROADCAST && (threads > 1 || size < HEADER || size > BUFFER / 2))
        usage("broadcast has one thread, and messages of 8 bytes to 64 KiB");
    if (scenario == ECHO || scenario == CONNECT)
        busy = clients;
    else if (busy < 0)
        busy = 0;
    if (busy > clients)
        usage("--busy is more than --clients");
    if (threads > clients)
        threads = clients;
}

static struct worker *make_workers(void)
{
    struct worker *workers = calloc((size_t)threads, sizeof *workers);
    struct client *all = calloc((size_t)clients, sizeof *all);
    if (workers == NULL || all == NULL)
        die("calloc");
    int taken = 0;
    for (int t = 0; t < threads; t++) {
        workers[t].clients = all + taken;
        workers[t].count = (clients - taken) / (threads - t);
        workers[t].source = (uint32_t)taken;
        workers[t].loop = epoll_create1(EPOLL_CLOEXEC);
        if (workers[t].loop < 0)
            die("epoll_create1");
        taken += workers[t].count;
    }
    for (int i = 0; i < clients; i++) {
        all[i].fd = -1;
        all[i].id = (uint32_t)i;
        if (scenario == BROADCAST) {
            all[i].part = malloc(size);
            all[i].whole = malloc(size);
            if (all[i].part == NULL || all[i].whole == NULL)
                die("malloc");
        }
        all[i].busy = (int64_t)(i + 1) * busy / clients > (int64_t)i * busy / clients;
    }
    return workers;
}

int main(int argc, char **argv)
{
    struct rlimit files;
    parse(argc, argv);
    if (getrlimit(RLIMIT_NOFILE, &files) < 0)
        die("getrlimit");
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_max < (rlim_t)clients + 16 + (rlim_t)threads)
        usage("more clients than descriptors (ulimit -Hn)");
    fill_pool();

    struct worker *workers = make_workers();
    pthread_barrier_init(&barrier, NULL, (unsigned)threads + 1);
    for (int t = 0; t < threads; t++)
        if (pthread_create(&workers[t].thread, NULL, work, &workers[t]) != 0)
            die("pthread_create");
    pthread_barrier_wait(&barrier);
    if (scenario == IDLE) {
        fputs("ready\n", stderr);
        wait_for_end_of_input();
    }
    for (int t = 0; t < threads; t++)
        if (workers[t].errors + workers[t].mismatches > 0)
            seconds = warmup = 0; /* with clients missing it is no measurement */
    begin = now_ns() + (uint64_t)(warmup * 1e9);
    end = begin + (uint64_t)(seconds * 1e9);
    pthread_barrier_wait(&barrier);

    double cpu = 0;
    if (busy > 0) {
        sleep_until(begin);
        cpu = cpu_seconds();
        sleep_until(end);
        cpu = cpu_seconds() - cpu;
    }
    for (int t = 0; t < threads; t++)
        pthread_join(workers[t].thread, NULL);
    return report(workers, cpu);
}
