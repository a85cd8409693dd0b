/* MPI in plain ints and pointers. Its handles are ints in one implementation and pointers in another, and its
 * constants are macros: only C compiled against the installed mpi.h knows them.
 *
 * Every function is called by the one thread that called lingqu_mpi_init. Results are MPI's codes, 0 for success. */

#include <mpi.h>
#include <stdlib.h>
#include <string.h>

/* A communicator of our own: no message of another library can be taken for ours. */
static MPI_Comm ours;

enum { TAG = 1 };

int lingqu_mpi_init(int *rank, int *size) {
    int provided = 0;
    int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided);
    if (code == MPI_SUCCESS && provided < MPI_THREAD_FUNNELED) {
        code = MPI_ERR_OTHER;
    }
    if (code == MPI_SUCCESS) {
        code = MPI_Comm_dup(MPI_COMM_WORLD, &ours);
    }
    if (code != MPI_SUCCESS) {
        return code;
    }
    /* The default ends all processes at the first error. */
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(ours, MPI_ERRORS_RETURN);
    code = MPI_Comm_rank(ours, rank);
    return code == MPI_SUCCESS ? MPI_Comm_size(ours, size) : code;
}

/* Gives everybody the bytes of rank 0; all ranks call it. */
int lingqu_mpi_share(void *bytes, int count) { return MPI_Bcast(bytes, count, MPI_BYTE, 0, ours); }

/* Starts to send; the bytes must stay until lingqu_mpi_test says that it is done. */
int lingqu_mpi_send(const void *bytes, int count, int rank, void **request) {
    MPI_Request *started = malloc(sizeof *started);
    if (started == NULL) {
        return MPI_ERR_NO_MEM;
    }
    int code = MPI_Isend(bytes, count, MPI_BYTE, rank, TAG, ours, started);
    if (code != MPI_SUCCESS) {
        free(started);
        return code;
    }
    *request = started;
    return MPI_SUCCESS;
}

/* The next message of anybody, if there is one: who sent it, its bytes, and what lingqu_mpi_receive takes it by. */
int lingqu_mpi_probe(int *source, int *count, void **message) {
    MPI_Message found;
    MPI_Status status;
    int is_there = 0;
    *message = NULL;
    int code = MPI_Improbe(MPI_ANY_SOURCE, TAG, ours, &is_there, &found, &status);
    if (code != MPI_SUCCESS || !is_there) {
        return code;
    }
    MPI_Message *kept = malloc(sizeof *kept);
    if (kept == NULL) {
        return MPI_ERR_NO_MEM;
    }
    *kept = found;
    *message = kept;
    *source = status.MPI_SOURCE;
    return MPI_Get_count(&status, MPI_BYTE, count);
}

/* Starts to receive a probed message; frees `message`. */
int lingqu_mpi_receive(void *bytes, int count, void *message, void **request) {
    MPI_Message found = *(MPI_Message *)message;
    free(message);
    MPI_Request *started = malloc(sizeof *started);
    if (started == NULL) {
        return MPI_ERR_NO_MEM;
    }
    int code = MPI_Imrecv(bytes, count, MPI_BYTE, &found, started);
    if (code != MPI_SUCCESS) {
        free(started);
        return code;
    }
    *request = started;
    return MPI_SUCCESS;
}

/* Whether a transfer is over, well or not; frees its request then. */
int lingqu_mpi_test(void *request, int *is_done) {
    int code = MPI_Test(request, is_done, MPI_STATUS_IGNORE);
    if (code != MPI_SUCCESS) {
        *is_done = 1;
    }
    if (*is_done) {
        free(request);
    }
    return code;
}

int lingqu_mpi_finalize(void) { return MPI_Finalize(); }

/* What a code means, at most `count` bytes with the final 0. */
void lingqu_mpi_describe(int code, char *text, int count) {
    char words[MPI_MAX_ERROR_STRING + 1] = "";
    int length = 0;
    if (MPI_Error_string(code, words, &length) != MPI_SUCCESS) {
        length = 0;
    }
    if (length >= count) {
        length = count - 1;
    }
    memcpy(text, words, (size_t)length);
    text[length] = 0;
}
