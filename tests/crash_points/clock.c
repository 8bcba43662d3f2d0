// Preloaded: the wall clock goes an hour back at every look.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *out) {
  static int (*real)(clockid_t, struct timespec *);
  static _Atomic long looks;
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, out);
  if (result == 0 && clock == CLOCK_REALTIME) out->tv_sec -= 3600 * ++looks;
  return result;
}
