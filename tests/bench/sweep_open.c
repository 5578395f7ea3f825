/* sweep_open LIST SWEEPS: opens, reads and closes each file of LIST, SWEEPS times; prints the CPU seconds of that. */
#include "sweep.h"

int main(int argc, char **argv) {
    static char buffer[16384];
    read_paths(argv[1]);
    double before = cpu_seconds();
    for (int sweep = atoi(argv[2]); sweep > 0; sweep--)
        for (int i = 0; i < count; i++) {
            int descriptor = open(paths[i], O_RDONLY | O_CLOEXEC);
            if (descriptor < 0 || read(descriptor, buffer, sizeof buffer) <= 0) return 1;
            close(descriptor);
        }
    printf("%.9f\n", cpu_seconds() - before);
    return argc == 3 ? 0 : 1;
}
