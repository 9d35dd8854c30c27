/* System calls on sockets, for which threads do not queue at the GIL.
 *
 * A thread that returns from the kernel must take the GIL. CPython lets all these threads wait for one
 * condition variable, and each of them wakes up every 5 ms to ask for a switch. With hundreds of
 * threads, this takes most of the machine. Here a thread passes a gate between its system call and
 * the GIL: one thread at a time waits for the GIL, and the others sleep at the gate. Rules:
 *
 * 1. The gate guards no data: it is an optimisation. Once the interpreter is finalizing, the thread in
 *    the gate may never leave it (rule 3), and all other threads pass.
 * 2. A thread never waits for the gate while it has the GIL, so the two cannot deadlock.
 * 3. `PyEval_RestoreThread` does not return in a daemon thread once the interpreter is finalizing.
 *    A thread may leave the kernel after that. So between `PyEval_SaveThread` and that call, a thread
 *    uses only its gate, which is never freed, its stack, and a buffer that it has a reference to.
 * 4. Each function does what the method of `socket.socket` with its name does. It calls this method
 *    if the socket has a timeout, and if the arguments are unusual or invalid.
 */

#include <Python.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/socket.h>
#include <time.h>

#if PY_VERSION_HEX < 0x030d0000
#define Py_IsFinalizing _Py_IsFinalizing
#endif

/* The policy, with times in nanoseconds. Strict order costs two thread switches for each system call.
 * So a thread that finds the gate open passes before those that sleep; one of them is woken, too. */
enum {
    /* To sleep and to be woken takes longer than most threads need the gate, or the GIL. With 5000
     * and 10000, a sixth less is served to 100 clients. */
    SPIN = 20000,
    /* The first sleeper is granted the gate after this time. With 5000000, 100 clients are served a
     * twentieth more, and their p99.9 is twice as long; with 500000, they are served a fifth less. */
    FAIR_AFTER = 1000000,
    /* A thread that waits for the GIL in another call gets it after this time, as in all of Python. */
    SWITCH_INTERVAL = 5000000,
    /* Within this time, a thread that was woken runs. */
    PAUSE = 100000,
    /* The owner of the GIL computes: thread switches cost little, so the order is strict, and a small
     * reply is sent without releasing the GIL. */
    LONG_TURN = 100000,
    SMALL = 16384, /* bytes */
};

struct sleeper {
    struct sleeper *next;
    pthread_cond_t woken;
    int64_t entered; /* when it entered the gate; 0 in the queue */
};

/* One for each interpreter, since an interpreter may have a GIL of its own. */
struct gate {
    _Atomic int64_t entered; /* when the thread in the gate entered it; 0 if it is open */
    _Atomic int64_t since;   /* when the last thread left the gate; -when once it released the GIL */
    _Atomic int64_t free;    /* when the GIL was last free for some time */
    _Atomic int64_t patience; /* how long to spin before the GIL; at most `spin` */
    int64_t spin;            /* how long to spin before the gate */
    atomic_int sleepers;     /* in the queue, or about to be */
    pthread_mutex_t lock;    /* guards the rest; no thread waits while it holds the lock */
    struct sleeper *first, *last;
    int64_t granted;         /* when the gate was last granted to a sleeper */
};

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int change(_Atomic int64_t *value, int64_t from, int64_t to)
{
    return atomic_compare_exchange_strong(value, &from, to);
}

/* Enter the gate if it is open, or opens within a few microseconds. Returns when, or 0. */
static int64_t spin_at_gate(struct gate *gate)
{
    int64_t moment = now(), end = moment + gate->spin;
    while (!change(&gate->entered, 0, moment)) {
        int64_t entered = atomic_load(&gate->entered);
        moment = now();
        if (moment >= end || (entered != 0 && moment - entered > SPIN))
            return 0;
    }
    return moment;
}

/* Sleep until another thread grants the gate, or wakes this one and it finds the gate open. */
static int64_t queue_at_gate(struct gate *gate)
{
    struct sleeper me = {.woken = PTHREAD_COND_INITIALIZER};
    pthread_mutex_lock(&gate->lock);
    atomic_fetch_add(&gate->sleepers, 1);
    *(gate->first == NULL ? &gate->first : &gate->last->next) = &me;
    gate->last = &me;
    while (me.entered == 0) {
        int64_t moment = now();
        if (gate->first == &me && change(&gate->entered, 0, moment))
            me.entered = moment;
        else
            pthread_cond_wait(&me.woken, &gate->lock);
    }
    gate->first = me.next; /* only the first sleeper enters */
    atomic_fetch_sub(&gate->sleepers, 1);
    pthread_mutex_unlock(&gate->lock);
    pthread_cond_destroy(&me.woken);
    return me.entered;
}

/* The thread entered the gate when `entered`, waited for the GIL, and has it since `moment`. */
static void leave_gate(struct gate *gate, int64_t entered, int64_t waited, int64_t moment)
{
    if (atomic_load(&gate->sleepers) == 0) {
        change(&gate->entered, entered, 0);
        if (atomic_load(&gate->sleepers) == 0)
            return;
    }
    pthread_mutex_lock(&gate->lock);
    int is_due = waited > LONG_TURN || moment - gate->granted > FAIR_AFTER;
    if (gate->first != NULL) {
        pthread_cond_signal(&gate->first->woken);
        if (is_due && change(&gate->entered, entered, moment))
            gate->first->entered = gate->granted = moment;
    }
    change(&gate->entered, entered, 0);
    pthread_mutex_unlock(&gate->lock);
}

static PyThreadState *release_gil(struct gate *gate)
{
    int64_t since = atomic_load(&gate->since), moment = now();
    if (since < 0 && moment + since > SWITCH_INTERVAL) /* no thread has passed the gate meanwhile */
        atomic_store(&gate->free, moment);
    PyThreadState *thread = PyEval_SaveThread();
    change(&gate->since, since, -moment); /* if there is no new owner yet */
    return thread;
}

/* Let a thread have the GIL that waits for it in another call. CPython has woken it, but a thread that
 * has something to receive at once takes the GIL before the woken one runs. */
static void pause_before_gate(struct gate *gate)
{
    int64_t moment = now(), since = atomic_load(&gate->since);
    int was_free = since >= 0 || moment + since > PAUSE;
    if (!was_free && moment - atomic_load(&gate->free) < SWITCH_INTERVAL)
        return;
    if (!was_free)
        nanosleep(&(struct timespec){.tv_nsec = PAUSE}, NULL);
    atomic_store(&gate->free, moment);
}

/* Spin until the owner of the GIL releases it, if it has passed the gate. An owner that releases the
 * GIL in a call of another kind does not say so. So after a failure, the next thread spins less. */
static void spin_at_gil(struct gate *gate, int64_t start)
{
    int64_t moment = start, since, patience = atomic_load(&gate->patience);
    while ((since = atomic_load(&gate->since)) > 0 && moment - since < patience)
        moment = now();
    if (since > 0 && moment > start)
        patience /= 2;
    else if (patience < gate->spin)
        patience += SPIN / 20;
    atomic_store(&gate->patience, patience);
}

/* Take the GIL again. errno is lost. */
static void take_gil(struct gate *gate, PyThreadState *thread)
{
    if (Py_IsFinalizing()) { /* the thread in the gate may never leave it */
        PyEval_RestoreThread(thread);
        return;
    }
    pause_before_gate(gate);
    int64_t entered = spin_at_gate(gate), start = entered;
    if (entered == 0) {
        entered = queue_at_gate(gate);
        start = now();
    }
    spin_at_gil(gate, start);
    PyEval_RestoreThread(thread);
    int64_t moment = now();
    atomic_store(&gate->since, moment);
    leave_gate(gate, entered, moment - start, moment);
}

/* The calls. Each function is given the socket and the arguments of the method. */

enum method { RECV, RECV_INTO, SEND, SENDALL, FILENO, GETTIMEOUT, METHODS };
static const char *const names[] = {"recv", "recv_into", "send", "sendall", "fileno", "gettimeout"};

struct module {
    struct gate *gate;
    PyObject *methods[METHODS]; /* those of `socket.socket` */
};

/* Whether `sock` is a socket that has no timeout. */
static int is_blocking(struct module *module, PyObject *sock)
{
    PyObject *timeout = PyObject_CallOneArg(module->methods[GETTIMEOUT], sock);
    Py_XDECREF(timeout);
    return timeout == Py_None;
}

static PyObject *call_python(struct module *module, enum method method, PyObject *args,
                             PyObject *named)
{
    PyErr_Clear(); /* an invalid argument has the error of the method */
    return PyObject_Call(module->methods[method], args, named);
}

/* Whether to send without releasing the GIL: the thread has computed for long, and so will the next
 * one. If this one released the GIL, it would wait for its next turn only to receive. */
static int keeps_gil(struct gate *gate, size_t size)
{
    int64_t since = atomic_load(&gate->since);
    return since > 0 && size <= SMALL && now() - since > LONG_TURN;
}

/* Receive or send, once the kernel can. Returns the number of bytes, or -1 with an exception. */
static Py_ssize_t transfer(struct module *module, PyObject *sock, int is_send, char *data,
                           Py_ssize_t length, int flags)
{
    struct gate *gate = module->gate;
    size_t size = (size_t)length, done = 0;
    for (int keeps = is_send && keeps_gil(gate, size);; keeps = 0) {
        PyObject *number = PyObject_CallOneArg(module->methods[FILENO], sock);
        if (number == NULL)
            return -1;
        int fd = (int)PyLong_AsLong(number); /* -1 after another thread has closed it */
        Py_DECREF(number);
        PyThreadState *thread = keeps ? NULL : release_gil(gate);
        int mode = flags | (keeps ? MSG_DONTWAIT : 0);
        ssize_t result = is_send ? send(fd, data + done, size - done, mode) : recv(fd, data, size, mode);
        int error = errno;
        if (!keeps)
            take_gil(gate, thread);
        done += result > 0 ? (size_t)result : 0;
        if (keeps && (result < 0 ? error == EAGAIN : done < size))
            continue; /* wait as for any send */
        if (result >= 0 || done > 0) /* as the kernel does, an error does not hide what was sent */
            return (Py_ssize_t)done;
        errno = error;
        if (error == EINTR ? PyErr_CheckSignals() != 0 : PyErr_SetFromErrno(PyExc_OSError) == NULL)
            return -1;
    }
}

static PyObject *gate_recv(PyObject *self, PyObject *args)
{
    struct module *module = PyModule_GetState(self);
    PyObject *sock;
    Py_ssize_t size;
    int flags = 0;
    if (!PyArg_ParseTuple(args, "On|i", &sock, &size, &flags) || size <= 0
        || !is_blocking(module, sock))
        return call_python(module, RECV, args, NULL);
    PyObject *data = PyBytes_FromStringAndSize(NULL, size);
    if (data == NULL)
        return NULL;
    Py_ssize_t received = transfer(module, sock, 0, PyBytes_AS_STRING(data), size, flags);
    if (received < 0)
        Py_CLEAR(data);
    else if (received < size)
        _PyBytes_Resize(&data, received);
    return data;
}

static PyObject *gate_recv_into(PyObject *self, PyObject *args, PyObject *named)
{
    struct module *module = PyModule_GetState(self);
    PyObject *sock;
    Py_buffer buffer;
    Py_ssize_t size = 0;
    int flags = 0;
    if (named != NULL || !PyArg_ParseTuple(args, "Ow*|ni", &sock, &buffer, &size, &flags))
        return call_python(module, RECV_INTO, args, named);
    size = size == 0 ? buffer.len : size;
    int is_usual = size > 0 && size <= buffer.len && is_blocking(module, sock);
    if (is_usual)
        size = transfer(module, sock, 0, buffer.buf, size, flags);
    PyBuffer_Release(&buffer);
    if (!is_usual)
        return call_python(module, RECV_INTO, args, named);
    return size < 0 ? NULL : PyLong_FromSsize_t(size);
}

static PyObject *send_data(enum method method, PyObject *self, PyObject *args)
{
    struct module *module = PyModule_GetState(self);
    PyObject *sock, *object;
    Py_buffer buffer;
    int flags = 0;
    if (!PyArg_ParseTuple(args, "OO|i", &sock, &object, &flags) || !is_blocking(module, sock)
        || PyObject_GetBuffer(object, &buffer, PyBUF_SIMPLE) < 0)
        return call_python(module, method, args, NULL);
    Py_ssize_t sent, done = 0;
    do {
        sent = transfer(module, sock, 1, (char *)buffer.buf + done, buffer.len - done, flags);
        done += sent;
        if (method == SENDALL && sent >= 0 && PyErr_CheckSignals() != 0)
            sent = -1;
    } while (method == SENDALL && sent >= 0 && done < buffer.len);
    PyBuffer_Release(&buffer);
    if (sent < 0)
        return NULL;
    return method == SEND ? PyLong_FromSsize_t(sent) : Py_NewRef(Py_None);
}

static PyObject *gate_send(PyObject *self, PyObject *args)
{
    return send_data(SEND, self, args);
}

static PyObject *gate_sendall(PyObject *self, PyObject *args)
{
    return send_data(SENDALL, self, args);
}

static PyObject *make_gate(PyObject *self, PyObject *spins)
{
    struct module *module = PyModule_GetState(self);
    struct gate *gate = PyMem_RawMalloc(sizeof *gate);
    if (gate == NULL)
        return PyErr_NoMemory();
    *gate = (struct gate){.lock = PTHREAD_MUTEX_INITIALIZER, .spin = spins == Py_True ? SPIN : 0};
    module->gate = gate;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"recv", gate_recv, METH_VARARGS, NULL},
    {"recv_into", (PyCFunction)(void (*)(void))gate_recv_into, METH_VARARGS | METH_KEYWORDS, NULL},
    {"send", gate_send, METH_VARARGS, NULL},
    {"sendall", gate_sendall, METH_VARARGS, NULL},
    {"open", make_gate, METH_O, "Make the gate anew. Threads spin if the argument is True."},
    {NULL, NULL, 0, NULL},
};

/* Make of a function what a class, or its `__get__`, binds to a socket. */
static int make_method(PyObject *self, const char *name)
{
    PyObject *function = PyObject_GetAttrString(self, name);
    PyObject *method = function == NULL ? NULL : PyInstanceMethod_New(function);
    int status = PyModule_AddObjectRef(self, name, method);
    Py_XDECREF(function);
    Py_XDECREF(method);
    return status;
}

static int execute(PyObject *self)
{
    struct module *module = PyModule_GetState(self);
    PyObject *none = make_gate(self, Py_True), *python = PyImport_ImportModule("_socket");
    PyObject *type = python == NULL ? NULL : PyObject_GetAttrString(python, "socket");
    int failed = none == NULL || type == NULL;
    for (int i = 0; i < METHODS && !failed; i++) {
        module->methods[i] = PyObject_GetAttrString(type, names[i]);
        failed = module->methods[i] == NULL || (i <= SENDALL && make_method(self, names[i]) < 0);
    }
    Py_XDECREF(none);
    Py_XDECREF(python);
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

/* The functions have references to the module, so none of them can be called any more. */
static void free_module(void *self)
{
    struct module *module = PyModule_GetState(self);
    for (int i = 0; module != NULL && i < METHODS; i++)
        Py_CLEAR(module->methods[i]);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "netkit.net._gate",
    .m_doc = "Methods of sockets, of whose threads one at a time waits for the GIL.",
    .m_size = sizeof(struct module),
    .m_methods = functions,
    .m_slots = slots,
    .m_free = free_module,
};

PyMODINIT_FUNC PyInit__gate(void)
{
    return PyModuleDef_Init(&definition);
}
