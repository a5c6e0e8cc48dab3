// Tests layers/host_memory.c with made-up trees of /proc and /sys/fs/cgroup.
#define _GNU_SOURCE
#include "layers/host_memory.h"

#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "layers/base/files.h"
#include "test/harness/test.h"

static char root[] = "/tmp/host_memory_XXXXXX";
static Error error;

static void put(const char *path, const char *text) {
    char *whole = format_text("%s%s", root, path), *folder = xstrdup(whole);
    *strrchr(folder, '/') = '\0';
    EXPECT(folder_create(folder, &error) == 0 && file_write(whole, text, strlen(text), &error) == 0, "%s",
           error.text);
    free(folder), free(whole);
}

static void clear(void) {
    char *command = format_text("rm -rf '%s'/*", root);
    EXPECT(system(command) == 0, "rm");
    free(command);
}

static void expect_available(size_t wanted, int sharing, const char *what) {
    const size_t found = host_memory_available(root, sharing);
    EXPECT(found == wanted, "%s: %zu, %zu was expected", what, found, wanted);
}

static void test_machine(void) {
    const size_t all = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    expect_available(all, 1, "no files: all of the machine");
    expect_available(all / 2, 2, "shared by two");
    put("/proc/meminfo", "MemTotal:       2000 kB\nMemFree:         500 kB\nMemAvailable:   1000 kB\n");
    expect_available(1000 << 10, 1, "what is available");
    expect_available(250 << 10, 4, "shared by four");
    clear();
}

static void test_version2(void) {
    put("/proc/meminfo", "MemAvailable:   100000 kB\n");
    put("/proc/self/cgroup", "0::/a/b\n");
    put("/sys/fs/cgroup/a/b/memory.max", "max\n");
    expect_available(100000 << 10, 1, "max is no limit");
    put("/sys/fs/cgroup/a/memory.max", "5000000\n");
    put("/sys/fs/cgroup/a/memory.current", "2000000\n");
    expect_available(3000000, 1, "the group above");
    put("/sys/fs/cgroup/a/memory.stat", "anon 1500000\nactive_file 1\ninactive_file 400000\n");
    expect_available(3400000, 1, "files that can be dropped");
    put("/sys/fs/cgroup/a/b/memory.max", "1000000\n");
    put("/sys/fs/cgroup/a/b/memory.current", "1200000\n");
    expect_available(0, 1, "more than the limit is in use");
    put("/proc/self/cgroup", "0::/not/shown/here\n");
    put("/sys/fs/cgroup/memory.max", "700000\n");
    put("/sys/fs/cgroup/memory.current", "200000\n");
    expect_available(500000, 1, "a container's own root");
    expect_available(250000, 2, "shared by two");
    clear();
}

static void test_version1(void) {
    put("/proc/meminfo", "MemAvailable:   100000 kB\n");
    put("/proc/self/cgroup", "12:cpu,cpuacct:/x\n9:memory:/job\n1:name=systemd:/init\n");
    put("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1000\n");
    expect_available(100000 << 10, 1, "the number that means no limit");
    put("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "8000000\n");
    put("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "3000000\n");
    put("/sys/fs/cgroup/memory/job/memory.stat", "inactive_file 5\ntotal_inactive_file 1000000\n");
    expect_available(6000000, 1, "its group");
    put("/proc/self/cgroup", "9:memoryless,memory2:/job\n");
    expect_available(100000 << 10, 1, "controllers of other names");
    clear();
}

static void test_limits(void) {
    struct rlimit before, limit;
    put("/proc/meminfo", "MemAvailable:   99000000000 kB\n");
    put("/proc/self/status", "Name:\tx\nVmSize:\t   1000000 kB\nVmData:\t  600000 kB\n");
    EXPECT(getrlimit(RLIMIT_AS, &before) == 0, "getrlimit");
    limit = before;
    limit.rlim_cur = (rlim_t)3000000 << 10;
    EXPECT(setrlimit(RLIMIT_AS, &limit) == 0, "setrlimit");
    expect_available((size_t)2000000 << 10, 1, "ulimit -v");
    expect_available((size_t)2000000 << 10, 3, "each process has its own");
    EXPECT(setrlimit(RLIMIT_AS, &before) == 0 && getrlimit(RLIMIT_DATA, &before) == 0, "limits");
    limit = before;
    limit.rlim_cur = (rlim_t)1600000 << 10;
    EXPECT(setrlimit(RLIMIT_DATA, &limit) == 0, "setrlimit");
    expect_available((size_t)1000000 << 10, 1, "ulimit -d");
    EXPECT(setrlimit(RLIMIT_DATA, &before) == 0, "setrlimit");
    clear();
}

int main(void) {
    if (mkdtemp(root) == NULL) die("cannot make a folder for the test");
    test_machine();
    test_version2();
    test_version1();
    test_limits();
    rmdir(root);
    return test_finish();
}
