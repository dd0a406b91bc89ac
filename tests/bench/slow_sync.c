/* Preloaded into a process: every fsync and fdatasync takes a millisecond longer, as on a disk that really flushes. */

#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void wait_a_millisecond(void) {
    struct timespec millisecond = {0, 1000000};
    nanosleep(&millisecond, NULL);
}

int fsync(int fd) {
    wait_a_millisecond();
    return syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    wait_a_millisecond();
    return syscall(SYS_fdatasync, fd);
}
