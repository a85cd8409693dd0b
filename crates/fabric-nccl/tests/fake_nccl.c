/* A library with NCCL's names for tests: communicators of two ranks within one process, memory of the host, and calls
 * that fail or never end when told to. As in NCCL, a send is done when the peer has received it, nothing blocks, and a
 * peer that aborts is not told of. */

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID = 5, IN_PROGRESS = 7, FAILED = 2, PAIRS_MAX = 4096 };

typedef struct {
    char bytes[128];
} Id;

/* A send or a receive that the peer has not met. */
typedef struct {
    char *at;
    size_t count;
    int is_send;
    int *stream;
    int is_hung; /* meets nobody */
} Pending;

typedef struct Comm {
    struct Comm *peer; /* until it aborts */
    Pending pending;
    int is_pending;
    int has_joined;
} Comm;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Comm *waiting[PAIRS_MAX]; /* rank 0 or 1 of a pair, by number, until the other comes */
static int pairs, alive, nested;
static const char *failing = "", *hanging = "";

static int is(const char *told, const char *name) { return strcmp(told, name) == 0; }

/* What the tests ask for. The texts must stay. */
void fake_fail(const char *name) { failing = name; }
void fake_hang(const char *name) { hanging = name; }
int fake_alive(void) { return alive; }
int fake_nested(void) { return nested; }
/* A stream is a counter of what is not done on it. */
int fake_is_done(int *stream) {
    pthread_mutex_lock(&lock);
    int is_done = *stream == 0;
    pthread_mutex_unlock(&lock);
    return is_done;
}

const char *ncclGetErrorString(int code) { return code == FAILED ? "told to fail" : "invalid"; }

int ncclGetVersion(int *version) {
    *version = is(failing, "old") ? 21300 : 22304;
    return is(failing, "ncclGetVersion") ? FAILED : SUCCESS;
}

int ncclGetUniqueId(Id *id) {
    if (is(failing, "ncclGetUniqueId")) {
        return FAILED;
    }
    pthread_mutex_lock(&lock);
    pairs = (pairs + 1) % PAIRS_MAX;
    memset(id, 'x', sizeof *id);
    memcpy(id, &pairs, sizeof pairs);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int ncclCommInitRankConfig(Comm **comm, int ranks, Id id, int rank, const void *config) {
    struct {
        size_t size;
        unsigned magic, version;
        int blocking;
    } given;
    memcpy(&given, config, sizeof given);
    if (given.magic != 0xcafebeef || given.size != sizeof given || given.blocking != 0 || ranks != 2 || rank > 1) {
        return INVALID;
    }
    if (is(failing, "ncclCommInitRankConfig")) {
        return FAILED;
    }
    pthread_mutex_lock(&lock);
    Comm *made = calloc(1, sizeof *made);
    int pair;
    memcpy(&pair, &id, sizeof pair);
    alive += 1;
    if (!is(hanging, "ncclCommInitRankConfig")) {
        if (waiting[pair] == NULL) {
            waiting[pair] = made;
        } else {
            made->peer = waiting[pair];
            made->peer->peer = made;
            made->has_joined = made->peer->has_joined = 1;
            waiting[pair] = NULL;
        }
    }
    *comm = made;
    pthread_mutex_unlock(&lock);
    return IN_PROGRESS;
}

int ncclGroupStart(void) {
    if (is(failing, "ncclGroupStart")) {
        return FAILED;
    }
    pthread_mutex_lock(&lock);
    nested += 1;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int ncclGroupEnd(void) {
    pthread_mutex_lock(&lock);
    nested -= 1;
    pthread_mutex_unlock(&lock);
    return is(failing, "ncclGroupEnd") ? FAILED : IN_PROGRESS;
}

static int put(const char *name, Comm *comm, Pending pending, int type) {
    if (type != 0 || comm->is_pending || !comm->has_joined) {
        return INVALID;
    }
    if (is(failing, name)) {
        return FAILED;
    }
    pthread_mutex_lock(&lock);
    Comm *peer = comm->peer;
    pending.is_hung = is(hanging, name);
    int is_met = !pending.is_hung && peer != NULL && peer->is_pending && !peer->pending.is_hung &&
                 peer->pending.is_send != pending.is_send;
    *pending.stream += 1;
    if (!is_met) {
        comm->pending = pending;
        comm->is_pending = 1;
    } else {
        Pending *from = pending.is_send ? &pending : &peer->pending, *to = pending.is_send ? &peer->pending : &pending;
        if (from->count != to->count) {
            pthread_mutex_unlock(&lock);
            return INVALID;
        }
        memcpy(to->at, from->at, from->count);
        if (is(failing, "garble")) {
            to->at[to->count / 2] ^= 4;
        }
        *pending.stream -= 1;
        *peer->pending.stream -= 1;
        peer->is_pending = 0;
    }
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int ncclSend(const void *at, size_t count, int type, int peer, Comm *comm, int *stream) {
    (void)peer;
    return put("ncclSend", comm, (Pending){(char *)at, count, 1, stream, 0}, type);
}

int ncclRecv(void *at, size_t count, int type, int peer, Comm *comm, int *stream) {
    (void)peer;
    return put("ncclRecv", comm, (Pending){at, count, 0, stream, 0}, type);
}

int ncclCommGetAsyncError(Comm *comm, int *state) {
    if (is(failing, "ncclCommGetAsyncError")) {
        return FAILED;
    }
    pthread_mutex_lock(&lock);
    *state = is(failing, "later") ? FAILED : comm->has_joined ? SUCCESS : IN_PROGRESS;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int ncclCommAbort(Comm *comm) {
    pthread_mutex_lock(&lock);
    if (comm->is_pending) {
        *comm->pending.stream -= 1;
    }
    if (comm->peer != NULL) {
        comm->peer->peer = NULL;
    }
    for (int pair = 0; pair < PAIRS_MAX; pair++) {
        if (waiting[pair] == comm) {
            waiting[pair] = NULL;
        }
    }
    alive -= 1;
    free(comm);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
