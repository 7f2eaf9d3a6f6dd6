// record PID SECONDS <ADDRESSES >HIT: which functions of a process run within that time. At the beginning of each there is a breakpoint, which goes when it is
// first met; so the process runs at its own speed, and what it asks of the kernel is as ever, which no emulation of a processor has. Addresses are hexadecimal, one a line,
// as they are in the process (it is linked to fixed ones). Children that still run the same program are followed.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BREAKPOINT = 0xcc };

static uint64_t *address;
static unsigned char *original, *hit;
static size_t count;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static int by_address(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

// The function that begins there, or -1.
static ssize_t at(uint64_t wanted) {
  uint64_t *found = bsearch(&wanted, address, count, sizeof *address, by_address);
  return found ? found - address : -1;
}

static void read_addresses(void) {
  size_t room = 0, unique = 0;
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    if (count == room && !(address = realloc(address, (room = room ? room * 2 : 1 << 16) * sizeof *address))) fail("memory");
    address[count++] = strtoull(line, NULL, 16);
  }
  if (count == 0) fail("no addresses");
  qsort(address, count, sizeof *address, by_address);
  for (size_t i = 0; i < count; i++)
    if (unique == 0 || address[unique - 1] != address[i]) address[unique++] = address[i];
  count = unique;
  original = calloc(count, 1), hit = calloc(count, 1);
  if (!original || !hit) fail("memory");
}

static int memory_of(int task) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/mem", task);
  return open(path, O_RDWR | O_CLOEXEC);
}

// Reads or writes all of a range.
static void transfer(int memory, unsigned char *bytes, size_t length, uint64_t from, int writing) {
  for (size_t done = 0; done < length;) {
    ssize_t now = writing ? pwrite(memory, bytes + done, length - done, from + done) : pread(memory, bytes + done, length - done, from + done);
    if (now <= 0) fail(writing ? "writing the process" : "reading the process");
    done += now;
  }
}

static void each_task(int process, void (*act)(int task)) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/task", process);
  DIR *tasks = opendir(path);
  if (!tasks) fail(path);
  for (struct dirent *entry; (entry = readdir(tasks));)
    if (entry->d_name[0] != '.') act(atoi(entry->d_name));
  closedir(tasks);
}

static void seize(int task) { ptrace(PTRACE_SEIZE, task, 0, PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK); }

// One that stands behind a breakpoint has it undone, and begins its function anew.
static int undone(int task) {
  struct user_regs_struct registers;
  if (ptrace(PTRACE_GETREGS, task, 0, &registers)) return 0;
  ssize_t function = at(registers.rip - 1);
  if (function < 0) return 0;
  hit[function] = 1;
  int memory = memory_of(task);
  if (memory < 0 || pwrite(memory, original + function, 1, address[function]) != 1) fail("undoing a breakpoint");
  close(memory);
  registers.rip--;
  ptrace(PTRACE_SETREGS, task, 0, &registers);
  return 1;
}

static void halt(int task) {
  int status;
  if (ptrace(PTRACE_INTERRUPT, task, 0, 0) || waitpid(task, &status, __WALL) != task || !WIFSTOPPED(status)) return;
  if (WSTOPSIG(status) == SIGTRAP && !(status >> 16)) undone(task);
}

static void go_on(int task) { ptrace(PTRACE_CONT, task, 0, 0); }
static void leave(int task) { ptrace(PTRACE_DETACH, task, 0, 0); }

static void follow(time_t end) {
  while (time(NULL) < end) {
    int status, task = waitpid(-1, &status, __WALL | WNOHANG);
    if (task < 0) return;
    if (task == 0) {
      usleep(200);
      continue;
    }
    if (!WIFSTOPPED(status)) continue;
    int signal = WSTOPSIG(status), event = status >> 16;
    if (event || signal == SIGSTOP || (signal == SIGTRAP && undone(task))) signal = 0;
    ptrace(PTRACE_CONT, task, 0, signal);
  }
}

int main(int arguments, char **argument) {
  if (arguments != 3) return fprintf(stderr, "record PID SECONDS <ADDRESSES >HIT\n"), 2;
  int process = atoi(argument[1]);
  read_addresses();
  // Some are made while others are looked at.
  for (int round = 0; round < 3; round++) each_task(process, seize);
  each_task(process, halt);
  uint64_t first = address[0];
  size_t length = address[count - 1] + 1 - first;
  unsigned char *text = malloc(length), *armed = malloc(length);
  int memory = memory_of(process);
  if (!text || !armed || memory < 0) fail("the process' memory");
  transfer(memory, text, length, first, 0);
  memcpy(armed, text, length);
  for (size_t i = 0; i < count; i++) {
    original[i] = text[address[i] - first];
    armed[address[i] - first] = BREAKPOINT;
  }
  transfer(memory, armed, length, first, 1);
  each_task(process, go_on);
  follow(time(NULL) + atoi(argument[2]));
  each_task(process, halt);
  transfer(memory, text, length, first, 1);
  each_task(process, leave);
  for (size_t i = 0; i < count; i++)
    if (hit[i]) printf("%lx\n", address[i]);
  return 0;
}
