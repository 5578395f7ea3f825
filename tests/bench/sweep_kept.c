/* sweep_kept LIST SWEEPS: opens each file of LIST once, then rereads all of them SWEEPS times; prints the CPU seconds
   of the rereading. */
#include "sweep.h"

int main(int argc, char **argv) {
    static char buffer[16384];
    static int descriptors[100000];
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    read_paths(argv[1]);
    for (int i = 0; i < count; i++)
        if ((descriptors[i] = open(paths[i], O_RDONLY | O_CLOEXEC)) < 0) return 1;
    double before = cpu_seconds();
    for (int sweep = atoi(argv[2]); sweep > 0; sweep--)
        for (int i = 0; i < count; i++)
            if (pread(descriptors[i], buffer, sizeof buffer, 0) <= 0) return 1;
    printf("%.9f\n", cpu_seconds() - before);
    return argc == 3 ? 0 : 1;
}
