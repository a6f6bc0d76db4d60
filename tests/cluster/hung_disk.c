/* Let the writes of one rank to checkpoints hang while the file HUNG_DISK exists, which contains that rank; preloaded, it stands
   for a disk that answers again after a while. The first call that hangs makes the file HUNG_DISK.met. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef ssize_t (*write_t)(int, const void *, size_t);
typedef int (*fsync_t)(int);

static int is_hung(void) {
  char found[20] = "";
  FILE *file = fopen(getenv("HUNG_DISK"), "r");
  if (!file) return 0;
  if (fscanf(file, "%19s", found) != 1) found[0] = 0;
  fclose(file);
  return strcmp(found, getenv("RANK")) == 0;
}

static void hang(int descriptor) {
  char link[64], path[4096], met[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return;
  path[length] = 0;
  if (!strstr(path, "/checkpoints/") || !is_hung()) return;
  snprintf(met, sizeof met, "%s.met", getenv("HUNG_DISK"));
  close(open(met, O_CREAT | O_WRONLY, 0600));
  while (is_hung()) usleep(50000);
}

ssize_t write(int descriptor, const void *bytes, size_t size) {
  static write_t real;
  if (!real) real = (write_t)dlsym(RTLD_NEXT, "write");
  hang(descriptor);
  return real(descriptor, bytes, size);
}

int fsync(int descriptor) {
  static fsync_t real;
  if (!real) real = (fsync_t)dlsym(RTLD_NEXT, "fsync");
  hang(descriptor);
  return real(descriptor);
}
