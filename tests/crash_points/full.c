// Preloaded: every file system says that FREE_BYTES are free.
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

int statvfs(const char *path, struct statvfs *out) {
  (void)path;
  memset(out, 0, sizeof *out);
  out->f_frsize = 1;
  out->f_bavail = strtoul(getenv("FREE_BYTES"), NULL, 10);
  return 0;
}

int statvfs64(const char *path, struct statvfs64 *out) { return statvfs(path, (struct statvfs *)out); }
