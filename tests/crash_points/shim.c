// Preloaded before libc: counts every call that changes the file system below CRASH_ROOT, and at the CRASH_AT-th of them
// does what CRASH_MODE says:
//   kill   the process ends at once, before the call
//   torn   a write writes half of its bytes, then the process ends; another call as `kill`
//   power  as `kill`, and whatever was written but not synced is gone: files are cut to their length at the last sync
//   fail   this call fails with ENOSPC (a rename, mkdir or open as well)
//   full   this call and every later one that needs room (write, create, mkdir) fails with ENOSPC
// CRASH_COUNT names a file that receives the number of calls when the process ends by itself; CRASH_TRACE one that
// receives a line for each call. Without CRASH_AT it only counts.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *root, *mode;
static size_t root_length;
static long at, seen;
static int trace = -1;

enum { FILES = 512 };
static struct { dev_t dev; ino_t ino; int fd; off_t synced; int dirty; } files[FILES];
static int file_count;

__attribute__((constructor)) static void start(void) {
  root = getenv("CRASH_ROOT");
  root_length = root ? strlen(root) : 0;
  mode = getenv("CRASH_MODE");
  const char *text = getenv("CRASH_AT");
  at = text ? atol(text) : 0;
  const char *path = getenv("CRASH_TRACE");
  if (path) trace = syscall(SYS_openat, AT_FDCWD, path, O_CREAT | O_WRONLY | O_APPEND, 0644);
}

__attribute__((destructor)) static void end(void) {
  const char *path = getenv("CRASH_COUNT");
  if (!path) return;
  int fd = syscall(SYS_openat, AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, 0644);
  char text[32];
  int length = snprintf(text, sizeof text, "%ld", seen);
  syscall(SYS_write, fd, text, length);
  syscall(SYS_close, fd);
}

static int below(const char *path) { return root && path && strncmp(path, root, root_length) == 0; }

static int path_below(int folder, const char *path, char *full) {
  if (!root || !path) return 0;
  if (path[0] == '/') {
    snprintf(full, PATH_MAX, "%s", path);
  } else {
    char link[64], base[PATH_MAX];
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t n = readlink(link, base, sizeof base - 1);
    if (n < 0) return 0;
    base[n] = 0;
    if (n + strlen(path) + 2 > PATH_MAX) return 0;
    strcpy(full, base);
    strcat(full, "/");
    strcat(full, path);
  }
  return below(full);
}

static int fd_below(int fd, char *full) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = root ? readlink(link, full, PATH_MAX - 1) : -1;
  if (n < 0) return 0;
  full[n] = 0;
  return below(full);
}

static void lose_what_was_not_synced(void) {
  for (int i = 0; i < file_count; i++)
    if (files[i].dirty) syscall(SYS_ftruncate, files[i].fd, files[i].synced);
}

static void die(void) {
  if (strcmp(mode, "power") == 0) lose_what_was_not_synced();
  syscall(SYS_kill, getpid(), SIGKILL);
  for (;;) pause();
}

// Counts a call. 0: go on; 1: the call has to fail; 2: write half, then die.
static int arrive(const char *call, const char *path, int needs_room) {
  pthread_mutex_lock(&lock);
  long number = ++seen;
  if (trace >= 0) {
    char line[PATH_MAX + 64];
    int n = snprintf(line, sizeof line, "%ld %s %s\n", number, call, path);
    syscall(SYS_write, trace, line, n);
  }
  int answer = 0;
  if (at && mode) {
    int here = number == at;
    if (strcmp(mode, "fail") == 0) answer = here;
    else if (strcmp(mode, "full") == 0) answer = number >= at && needs_room;
    else if (here && strcmp(mode, "torn") == 0 && strcmp(call, "write") == 0) answer = 2;
    else if (here) die();
  }
  pthread_mutex_unlock(&lock);
  return answer;
}

// Remembers a written file by its inode, with a descriptor of our own: its name may change before the crash.
static void wrote(int fd, int is_synced) {
  struct stat s;
  if (!mode || strcmp(mode, "power") || fstat(fd, &s) || !S_ISREG(s.st_mode)) return;
  pthread_mutex_lock(&lock);
  int i = 0;
  while (i < file_count && !(files[i].dev == s.st_dev && files[i].ino == s.st_ino)) i++;
  if (i == file_count && i < FILES) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    files[i].dev = s.st_dev;
    files[i].ino = s.st_ino;
    files[i].synced = 0;
    files[i].fd = syscall(SYS_openat, AT_FDCWD, link, O_WRONLY | O_CLOEXEC, 0);
    file_count++;
  }
  if (i < FILES) {
    files[i].dirty = !is_synced;
    if (is_synced) files[i].synced = s.st_size;
  }
  pthread_mutex_unlock(&lock);
}

static int no_room(void) { errno = ENOSPC; return -1; }

ssize_t write(int fd, const void *data, size_t size) {
  REAL(write);
  char path[PATH_MAX];
  if (!fd_below(fd, path)) return real(fd, data, size);
  int answer = arrive("write", path, 1);
  if (answer == 1) return no_room();
  if (answer == 2) { real(fd, data, size / 2); die(); }
  ssize_t n = real(fd, data, size);
  wrote(fd, 0);
  return n;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(writev);
  char path[PATH_MAX];
  if (!fd_below(fd, path)) return real(fd, parts, count);
  if (arrive("writev", path, 1)) return no_room();
  ssize_t n = real(fd, parts, count);
  wrote(fd, 0);
  return n;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) {
  REAL(pwrite64);
  char path[PATH_MAX];
  if (!fd_below(fd, path)) return real(fd, data, size, offset);
  if (arrive("pwrite", path, 1)) return no_room();
  ssize_t n = real(fd, data, size, offset);
  wrote(fd, 0);
  return n;
}

ssize_t copy_file_range(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned flags) {
  REAL(copy_file_range);
  char path[PATH_MAX];
  if (!fd_below(out, path)) return real(in, in_offset, out, out_offset, size, flags);
  if (arrive("copy_file_range", path, 1)) return no_room();
  ssize_t n = real(in, in_offset, out, out_offset, size, flags);
  wrote(out, 0);
  return n;
}

static int sync_call(const char *name, int fd, int (*real)(int)) {
  char path[PATH_MAX];
  if (!fd_below(fd, path)) return real(fd);
  if (arrive(name, path, 0)) return no_room();
  int result = real(fd);
  if (result == 0) wrote(fd, 1);
  return result;
}

int fsync(int fd) { REAL(fsync); return sync_call("fsync", fd, real); }
int fdatasync(int fd) { REAL(fdatasync); return sync_call("fdatasync", fd, real); }

int ftruncate64(int fd, off_t length) {
  REAL(ftruncate64);
  char path[PATH_MAX];
  if (!fd_below(fd, path)) return real(fd, length);
  return arrive("ftruncate", path, 0) ? no_room() : real(fd, length);
}

static int open_call(int folder, const char *name, int flags, mode_t create_mode) {
  char path[PATH_MAX];
  if ((flags & O_CREAT) && path_below(folder, name, path)) {
    struct stat s;
    int exists = fstatat(folder, name, &s, 0) == 0;
    if (arrive(exists ? "open" : "create", path, !exists)) return no_room();
  }
  return syscall(SYS_openat, folder, name, flags, create_mode);
}

#define MODE_ARGUMENT(flags) \
  mode_t create_mode = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); create_mode = va_arg(list, mode_t); va_end(list); }

int open(const char *path, int flags, ...) { MODE_ARGUMENT(flags) return open_call(AT_FDCWD, path, flags, create_mode); }
int open64(const char *path, int flags, ...) { MODE_ARGUMENT(flags) return open_call(AT_FDCWD, path, flags, create_mode); }
int openat(int folder, const char *path, int flags, ...) { MODE_ARGUMENT(flags) return open_call(folder, path, flags, create_mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE_ARGUMENT(flags) return open_call(folder, path, flags, create_mode); }

#define ON_PATH(name, folder, path, room, ...) \
  REAL(name); \
  char full[PATH_MAX]; \
  if (!path_below(folder, path, full)) return real(__VA_ARGS__); \
  return arrive(#name, full, room) ? no_room() : real(__VA_ARGS__);

int rename(const char *from, const char *to) { ON_PATH(rename, AT_FDCWD, to, 0, from, to) }
int renameat(int a, const char *from, int b, const char *to) { ON_PATH(renameat, b, to, 0, a, from, b, to) }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { ON_PATH(renameat2, b, to, 0, a, from, b, to, flags) }
int link(const char *from, const char *to) { ON_PATH(link, AT_FDCWD, to, 1, from, to) }
int linkat(int a, const char *from, int b, const char *to, int flags) { ON_PATH(linkat, b, to, 1, a, from, b, to, flags) }
int mkdir(const char *path, mode_t m) { ON_PATH(mkdir, AT_FDCWD, path, 1, path, m) }
int unlink(const char *path) { ON_PATH(unlink, AT_FDCWD, path, 0, path) }
int unlinkat(int folder, const char *path, int flags) { ON_PATH(unlinkat, folder, path, 0, folder, path, flags) }
int rmdir(const char *path) { ON_PATH(rmdir, AT_FDCWD, path, 0, path) }
int chmod(const char *path, mode_t m) { ON_PATH(chmod, AT_FDCWD, path, 0, path, m) }
