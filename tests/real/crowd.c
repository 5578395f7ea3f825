/* `crowd PROCESSES DESCRIPTORS`: so many processes with so many descriptors each, then a line, until its input ends. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int processes = argc > 1 ? atoi(argv[1]) : 1, descriptors = argc > 2 ? atoi(argv[2]) : 1;
    for (int number = 3; number < descriptors; number++)
        if (open("/dev/null", O_RDONLY) < 0)
            return 1;
    for (int number = 0; number < processes; number++) {
        pid_t pid = fork();
        if (pid < 0)
            return 1;
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;)
                pause();
        }
    }
    puts("ready");
    fflush(stdout);
    getchar();
    return 0;
}
