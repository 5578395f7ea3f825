/* What both sweeps share: the list of files, and the CPU seconds of this process. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static char *paths[100000];
static int count;

static void read_paths(const char *list) {
    char line[4096];
    FILE *file = fopen(list, "r");
    if (!file) exit(1);
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        paths[count++] = strdup(line);
    }
    fclose(file);
}

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_utime.tv_usec / 1e6 + usage.ru_stime.tv_sec + usage.ru_stime.tv_usec / 1e6;
}
