/* Preloaded, it makes a file system slow: below SLOW_UNDER each opening takes a tenth of a second,
   and each sync and renaming, wherever, half a second. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REAL(name) dlsym(RTLD_NEXT, name)

static int opened(const char *function, const char *path, int flags, mode_t mode) {
  int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))REAL(function);
  const char *slow = getenv("SLOW_UNDER");
  if (slow && strncmp(path, slow, strlen(slow)) == 0) usleep(100000);
  return real(path, flags, mode);
}

static mode_t mode_of(int flags, va_list more) {
  return flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
}

int open(const char *path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  mode_t mode = mode_of(flags, more);
  va_end(more);
  return opened("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  mode_t mode = mode_of(flags, more);
  va_end(more);
  return opened("open64", path, flags, mode);
}

int fsync(int file) {
  usleep(500000);
  return ((int (*)(int))REAL("fsync"))(file);
}

int fdatasync(int file) {
  usleep(500000);
  return ((int (*)(int))REAL("fdatasync"))(file);
}

int rename(const char *from, const char *to) {
  usleep(500000);
  return ((int (*)(const char *, const char *))REAL("rename"))(from, to);
}
