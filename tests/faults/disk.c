/* A disk that records, or fails: preloaded into a process (LD_PRELOAD), it sees what the C library is asked to do below FAULTS_FOLDER.

   Recorded: one line a call into FAULTS_RECORD: call, path, second path, inode, offset, bytes as hex. What a library asks the kernel itself
   is not seen: safetensors renames its temporary file so. By the inode it is known again.
   Failing: `faults_arm(n, error, stays)` lets the n-th call from now (1 is the next) fail with `error`; a write that fails first takes half of
   its bytes. stays 0: this call alone; 1: from then on all that needs room (a full disk); 2: from then on everything (a dead one). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long calls, at;
static int failure, stays, down;
static int record = -2;

void faults_arm(long n, int error, int how) { calls = 0; at = n; failure = error; stays = how; down = 0; }
long faults_calls(void) { return calls; }

static void place(int at_folder, const char *path, char *out) {
    char base[PATH_MAX], link[64];
    if (path[0] == '/') { snprintf(out, PATH_MAX, "%s", path); return; }
    if (at_folder == AT_FDCWD) { if (!getcwd(base, sizeof base)) base[0] = 0; }
    else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", at_folder);
        ssize_t n = readlink(link, base, sizeof base - 1);
        base[n < 0 ? 0 : n] = 0;
    }
    if (path[0]) snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, path); else snprintf(out, PATH_MAX, "%s", base);
}

static int below(const char *path) {
    const char *folder = getenv("FAULTS_FOLDER");
    return folder && !strncmp(path, folder, strlen(folder)) && (path[strlen(folder)] == '/' || !path[strlen(folder)]);
}

/* Whether the call on this path fails. room: it needs room on the disk. */
static int fails(int room) {
    int result = 0;
    pthread_mutex_lock(&lock);
    calls++;
    if (at && calls == at) { down = stays; result = 1; }
    else if (down == 2 || (down == 1 && room)) result = 1;
    pthread_mutex_unlock(&lock);
    if (result) errno = failure;
    return result;
}

static void note(const char *call, const char *path, const char *other, long offset, const void *bytes, size_t n) {
    if (record == -2) {
        const char *name = getenv("FAULTS_RECORD");
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
        record = name ? real(name, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    }
    if (record < 0) return;
    int before = errno;
    char *line = malloc(2 * n + 3 * PATH_MAX);
    struct stat found = {0};
    stat(path, &found);
    size_t used = sprintf(line, "%s\t%s\t%s\t%ld\t%ld\t", call, path, other, (long)found.st_ino, offset);
    for (size_t i = 0; i < n; i++) used += sprintf(line + used, "%02x", ((const unsigned char *)bytes)[i]);
    line[used++] = '\n';
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (real(record, line, used) != (ssize_t)used) abort();
    free(line);
    errno = before;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)

#define OPEN(name) \
int name(const char *path, int flags, ...) { \
    REAL(int, name, const char *, int, ...); \
    char whole[PATH_MAX]; va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
    place(AT_FDCWD, path, whole); \
    if (!below(whole)) return real(path, flags, mode); \
    if (fails(flags & O_CREAT)) return -1; \
    int new = access(whole, F_OK), result = real(path, flags, mode); \
    if (result >= 0 && (flags & O_CREAT) && new) note("create", whole, "", 0, "", 0); \
    else if (result >= 0 && (flags & O_TRUNC)) note("truncate", whole, "", 0, "", 0); \
    return result; }
OPEN(open) OPEN(open64)

#define OPENAT(name) \
int name(int folder, const char *path, int flags, ...) { \
    REAL(int, name, int, const char *, int, ...); \
    char whole[PATH_MAX]; va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
    place(folder, path, whole); \
    if (!below(whole)) return real(folder, path, flags, mode); \
    if (fails(flags & O_CREAT)) return -1; \
    int new = access(whole, F_OK), result = real(folder, path, flags, mode); \
    if (result >= 0 && (flags & O_CREAT) && new) note("create", whole, "", 0, "", 0); \
    else if (result >= 0 && (flags & O_TRUNC)) note("truncate", whole, "", 0, "", 0); \
    return result; }
OPENAT(openat) OPENAT(openat64)

ssize_t write(int file, const void *bytes, size_t n) {
    REAL(ssize_t, write, int, const void *, size_t);
    char whole[PATH_MAX]; place(file, "", whole);
    if (!below(whole)) return real(file, bytes, n);
    if (fails(1)) {
        if (calls != at || n < 2) return -1;
        n /= 2; /* what a disk does that is full in the middle: the rest is refused when it is asked again */
        if (!stays) { real(file, bytes, n); errno = failure; return -1; }
    }
    long offset = lseek(file, 0, SEEK_CUR);
    ssize_t result = real(file, bytes, n);
    if (result > 0) note("write", whole, "", offset, bytes, result);
    return result;
}

#define PWRITE(name) \
ssize_t name(int file, const void *bytes, size_t n, off_t offset) { \
    REAL(ssize_t, name, int, const void *, size_t, off_t); \
    char whole[PATH_MAX]; place(file, "", whole); \
    if (!below(whole)) return real(file, bytes, n, offset); \
    if (fails(1)) return -1; \
    ssize_t result = real(file, bytes, n, offset); \
    if (result > 0) note("write", whole, "", offset, bytes, result); \
    return result; }
PWRITE(pwrite) PWRITE(pwrite64)

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    char whole[PATH_MAX]; place(file, "", whole);
    if (!below(whole)) return real(file, parts, count);
    return count ? write(file, parts[0].iov_base, parts[0].iov_len) : 0; /* a short write, which is allowed */
}

#define ON_FILE(name, room, call, size) \
    char whole[PATH_MAX]; place(file, "", whole); \
    if (!below(whole)) return real size; \
    if (fails(room)) return -1; \
    int result = real size; \
    if (!result) note(call, whole, "", length, "", 0); \
    return result;
int fsync(int file) { REAL(int, fsync, int); long length = 0; ON_FILE(fsync, 1, "fsync", (file)) }
int fdatasync(int file) { REAL(int, fdatasync, int); long length = 0; ON_FILE(fdatasync, 1, "fsync", (file)) }
int ftruncate(int file, off_t length) { REAL(int, ftruncate, int, off_t); ON_FILE(ftruncate, 1, "length", (file, length)) }
int ftruncate64(int file, off_t length) { REAL(int, ftruncate64, int, off_t); ON_FILE(ftruncate64, 1, "length", (file, length)) }

#define ON_PATH(call, room, folder, arguments) \
    char whole[PATH_MAX]; place(folder, path, whole); \
    if (!below(whole)) return real arguments; \
    if (fails(room)) return -1; \
    int result = real arguments; \
    if (!result) note(call, whole, "", 0, "", 0); \
    return result;
int mkdir(const char *path, mode_t mode) { REAL(int, mkdir, const char *, mode_t); ON_PATH("mkdir", 1, AT_FDCWD, (path, mode)) }
int mkdirat(int folder, const char *path, mode_t mode) { REAL(int, mkdirat, int, const char *, mode_t); ON_PATH("mkdir", 1, folder, (folder, path, mode)) }
int unlink(const char *path) { REAL(int, unlink, const char *); ON_PATH("remove", 0, AT_FDCWD, (path)) }
int rmdir(const char *path) { REAL(int, rmdir, const char *); ON_PATH("remove", 0, AT_FDCWD, (path)) }
int unlinkat(int folder, const char *path, int flags) { REAL(int, unlinkat, int, const char *, int); ON_PATH("remove", 0, folder, (folder, path, flags)) }

static int moved(int done, const char *from, const char *to) { if (!done) note("rename", from, to, 0, "", 0); return done; }
int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    char one[PATH_MAX], two[PATH_MAX]; place(AT_FDCWD, from, one); place(AT_FDCWD, to, two);
    if (!below(one)) return real(from, to);
    return fails(1) ? -1 : moved(real(from, to), one, two);
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    char one[PATH_MAX], two[PATH_MAX]; place(a, from, one); place(b, to, two);
    if (!below(one)) return real(a, from, b, to);
    return fails(1) ? -1 : moved(real(a, from, b, to), one, two);
}
