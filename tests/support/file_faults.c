/* Faults of the file system for one process: preloaded, it lets calls fail that touch files below one folder.
 *
 * Not armed, every call goes on to the C library. arm_file_faults() counts the calls of some kinds from then on, and
 * lets the one with a given number fail, or all from that one on, as on a disk that stays full. The first write on a
 * full disk takes half of what it is given, as a disk's last block does. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, CREATE = 2, WRITE = 4, SYNC = 8, NAME = 16, REMOVE = 32, READ = 64, LIST = 128, CHANGE = 256, SET = 512 };

static char root[PATH_MAX];
static size_t root_length;
static int kinds_counted, fault, lasting, trace = -1, half_done;
static long at;
static atomic_long passed;
static atomic_int armed;

void arm_file_faults(const char *folder, int kinds, long number, int error, int stays, const char *trace_file) {
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    kinds_counted = kinds, at = number, fault = error, lasting = stays, half_done = 0;
    passed = 0;
    trace = syscall(SYS_openat, AT_FDCWD, trace_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    armed = 1;
}

static int below(const char *path) {
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

/* Write to `full` the path that `path` means, relative to the folder `handle`; 1 if that is below the root. */
static int resolve(int handle, const char *path, char *full) {
    char link[64];
    ssize_t length;
    if (path && path[0] == '/') {
        snprintf(full, PATH_MAX, "%s", path);
        return below(full);
    }
    snprintf(link, sizeof link, handle == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", handle);
    length = syscall(SYS_readlinkat, AT_FDCWD, link, full, PATH_MAX - 1);
    if (length < 0) return 0;
    full[length] = 0;
    if (path) snprintf(full + length, PATH_MAX - length, "/%s", path);
    return below(full);
}

static int strikes(int kind, const char *call, int handle, const char *path) {
    char full[PATH_MAX], line[PATH_MAX + 64];
    int saved = errno, hit, length;
    long number;
    if (!armed || !(kinds_counted & kind)) return 0;
    if (!resolve(handle, path, full)) return errno = saved, 0;
    number = ++passed;
    hit = fault && (number == at || (lasting && number > at));
    if (!fault || (hit && number == at)) {
        length = snprintf(line, sizeof line, "%s\t%d\t%s\n", call, kind, full + root_length);
        syscall(SYS_write, trace, line, length);
    }
    errno = hit ? fault : saved;
    return hit;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define PASS(type, name, ...) { \
    static __typeof__(&name) next; if (!next) { next = NEXT(name); } return next(__VA_ARGS__); }
#define MODE mode_t mode = 0; if (flags & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); \
    mode = va_arg(rest, mode_t); va_end(rest); }

static int opening(int flags) {
    return flags & O_CREAT ? CREATE : (flags & O_ACCMODE) != O_RDONLY ? CHANGE : flags & O_DIRECTORY ? LIST : OPEN;
}

int open(const char *path, int flags, ...) {
    MODE if (strikes(opening(flags), "open", AT_FDCWD, path)) { return -1; }
    PASS(int, open, path, flags, mode)
}
int open64(const char *path, int flags, ...) {
    MODE if (strikes(opening(flags), "open", AT_FDCWD, path)) { return -1; }
    PASS(int, open64, path, flags, mode)
}
int openat(int folder, const char *path, int flags, ...) {
    MODE if (strikes(opening(flags), "open", folder, path)) { return -1; }
    PASS(int, openat, folder, path, flags, mode)
}
int openat64(int folder, const char *path, int flags, ...) {
    MODE if (strikes(opening(flags), "open", folder, path)) { return -1; }
    PASS(int, openat64, folder, path, flags, mode)
}
int __open_2(const char *path, int flags) { return open(path, flags); }
int __open64_2(const char *path, int flags) { return open64(path, flags); }
int __openat_2(int folder, const char *path, int flags) { return openat(folder, path, flags); }
int __openat64_2(int folder, const char *path, int flags) { return openat64(folder, path, flags); }
int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open64(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

FILE *fopen(const char *path, const char *mode) {
    if (strikes(mode[0] == 'r' ? OPEN : CREATE, "fopen", AT_FDCWD, path)) return NULL;
    PASS(FILE *, fopen, path, mode)
}
FILE *fopen64(const char *path, const char *mode) {
    if (strikes(mode[0] == 'r' ? OPEN : CREATE, "fopen", AT_FDCWD, path)) return NULL;
    PASS(FILE *, fopen64, path, mode)
}
DIR *opendir(const char *path) {
    if (strikes(LIST, "opendir", AT_FDCWD, path)) return NULL;
    PASS(DIR *, opendir, path)
}

ssize_t write(int handle, const void *bytes, size_t size) {
    if (strikes(WRITE, "write", handle, NULL)) {
        if (!lasting || half_done || size < 2) return -1;
        half_done = 1, size /= 2;
    }
    PASS(ssize_t, write, handle, bytes, size)
}

#define FAIL(type, name, kind, handle, path, parameters, ...) type name parameters { \
    if (strikes(kind, #name, handle, path)) { return -1; } PASS(type, name, __VA_ARGS__) }
#define FAIL_TWO(name, from, source, to, target, parameters, ...) int name parameters { \
    if (strikes(NAME, #name, to, target)) { return -1; } PASS(int, name, __VA_ARGS__) }

FAIL(ssize_t, pwrite, WRITE, h, NULL, (int h, const void *b, size_t n, off_t o), h, b, n, o)
FAIL(ssize_t, pwrite64, WRITE, h, NULL, (int h, const void *b, size_t n, off64_t o), h, b, n, o)
FAIL(ssize_t, writev, WRITE, h, NULL, (int h, const struct iovec *v, int n), h, v, n)
FAIL(ssize_t, pwritev, WRITE, h, NULL, (int h, const struct iovec *v, int n, off_t o), h, v, n, o)
FAIL(ssize_t, pwritev64, WRITE, h, NULL, (int h, const struct iovec *v, int n, off64_t o), h, v, n, o)
FAIL(ssize_t, copy_file_range, WRITE, t, NULL, (int s, off64_t *i, int t, off64_t *o, size_t n, unsigned f),
     s, i, t, o, n, f)
FAIL(ssize_t, sendfile, WRITE, t, NULL, (int t, int s, off_t *o, size_t n), t, s, o, n)
FAIL(ssize_t, sendfile64, WRITE, t, NULL, (int t, int s, off64_t *o, size_t n), t, s, o, n)
FAIL(int, ftruncate, WRITE, h, NULL, (int h, off_t n), h, n)
FAIL(int, ftruncate64, WRITE, h, NULL, (int h, off64_t n), h, n)
FAIL(int, fallocate, WRITE, h, NULL, (int h, int m, off_t o, off_t n), h, m, o, n)
FAIL(int, fallocate64, WRITE, h, NULL, (int h, int m, off64_t o, off64_t n), h, m, o, n)
FAIL(ssize_t, read, READ, h, NULL, (int h, void *b, size_t n), h, b, n)
FAIL(ssize_t, pread, READ, h, NULL, (int h, void *b, size_t n, off_t o), h, b, n, o)
FAIL(ssize_t, pread64, READ, h, NULL, (int h, void *b, size_t n, off64_t o), h, b, n, o)
FAIL(int, fsync, SYNC, h, NULL, (int h), h)
FAIL(int, fdatasync, SYNC, h, NULL, (int h), h)
FAIL(int, mkdir, NAME, AT_FDCWD, p, (const char *p, mode_t m), p, m)
FAIL(int, mkdirat, NAME, h, p, (int h, const char *p, mode_t m), h, p, m)
FAIL(int, chmod, SET, AT_FDCWD, p, (const char *p, mode_t m), p, m)
FAIL(int, fchmod, SET, h, NULL, (int h, mode_t m), h, m)
FAIL(int, fchmodat, SET, h, p, (int h, const char *p, mode_t m, int f), h, p, m, f)
FAIL(int, utimensat, SET, h, p, (int h, const char *p, const struct timespec t[2], int f), h, p, t, f)
FAIL(int, unlink, REMOVE, AT_FDCWD, p, (const char *p), p)
FAIL(int, unlinkat, REMOVE, h, p, (int h, const char *p, int f), h, p, f)
FAIL(int, rmdir, REMOVE, AT_FDCWD, p, (const char *p), p)
FAIL_TWO(rename, AT_FDCWD, s, AT_FDCWD, t, (const char *s, const char *t), s, t)
FAIL_TWO(renameat, d, s, e, t, (int d, const char *s, int e, const char *t), d, s, e, t)
FAIL_TWO(renameat2, d, s, e, t, (int d, const char *s, int e, const char *t, unsigned f), d, s, e, t, f)
FAIL_TWO(link, AT_FDCWD, s, AT_FDCWD, t, (const char *s, const char *t), s, t)
FAIL_TWO(linkat, d, s, e, t, (int d, const char *s, int e, const char *t, int f), d, s, e, t, f)
FAIL_TWO(symlink, AT_FDCWD, s, AT_FDCWD, t, (const char *s, const char *t), s, t)
FAIL_TWO(symlinkat, AT_FDCWD, s, e, t, (const char *s, int e, const char *t), s, e, t)
