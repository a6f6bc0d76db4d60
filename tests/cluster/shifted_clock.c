/* Shift the time of day of a process by the seconds in the file SHIFTED_CLOCK; preloaded, it stands for a clock that is set.
   libfaketime 0.9.10 does the same, but lets clock_nanosleep fail, which Python's time.sleep calls. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

typedef int (*clock_gettime_t)(clockid_t, struct timespec *);

static clock_gettime_t real_clock(void) {
  static clock_gettime_t found;
  if (!found) found = (clock_gettime_t)dlsym(RTLD_NEXT, "clock_gettime");
  return found;
}

/* The file is read at most ten times a second. */
static long shift_seconds(void) {
  static long shift, next_read_ms;
  struct timespec now;
  real_clock()(CLOCK_MONOTONIC, &now);
  long now_ms = now.tv_sec * 1000 + now.tv_nsec / 1000000;
  if (now_ms >= next_read_ms) {
    next_read_ms = now_ms + 100;
    FILE *file = fopen(getenv("SHIFTED_CLOCK"), "r");
    if (file) {
      if (fscanf(file, "%ld", &shift) != 1) shift = 0;
      fclose(file);
    }
  }
  return shift;
}

int clock_gettime(clockid_t clock, struct timespec *result) {
  int code = real_clock()(clock, result);
  if (code == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) result->tv_sec += shift_seconds();
  return code;
}

int gettimeofday(struct timeval *result, void *zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  result->tv_sec = now.tv_sec;
  result->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *result) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (result) *result = now.tv_sec;
  return now.tv_sec;
}
