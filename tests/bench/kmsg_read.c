/* kmsg_read PASSES: reads the whole of /dev/kmsg, PASSES times; prints the records and the CPU seconds of that. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    static char buffer[65536];
    long records = 0;
    for (int pass = argc == 2 ? atoi(argv[1]) : 0; pass > 0; pass--) {
        int descriptor = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        if (descriptor < 0) return 1;
        while (read(descriptor, buffer, sizeof buffer) > 0 || errno == EPIPE) records++;
        close(descriptor);
    }
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    printf("%ld %.9f\n", records, now.tv_sec + now.tv_nsec / 1e9);
    return 0;
}
