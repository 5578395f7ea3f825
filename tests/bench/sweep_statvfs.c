/* sweep_statvfs LIST SWEEPS: asks all mount points of LIST for their space SWEEPS times; prints the CPU seconds of that. */
#include "sweep.h"
#include <sys/statvfs.h>

int main(int argc, char **argv) {
    struct statvfs space;
    read_paths(argv[1]);
    double before = cpu_seconds();
    for (int sweep = atoi(argv[2]); sweep > 0; sweep--)
        for (int i = 0; i < count; i++)
            if (statvfs(paths[i], &space)) return 1;
    printf("%.9f\n", cpu_seconds() - before);
    return argc == 3 ? 0 : 1;
}
