/*
 * usage: victims COUNT FILE PAUSE-MS
 *
 * COUNT times: a child opens FILE, which some rule kills for, and waits for its end. Prints for each the
 * ns from before the call until its parent saw it gone, -1 for one that was not killed.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv)
{
	int count = argc == 4 ? atoi(argv[1]) : 0, status;
	volatile long long *called =
		mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (!count)
		return 2;
	for (int i = 0; i < count; i++) {
		pid_t child = fork();
		long long gone;

		if (child == 0) {
			*called = now();
			if (open(argv[2], O_RDONLY) < 0)
				_exit(1);
			sleep(3);
			_exit(0);
		}
		waitpid(child, &status, 0);
		gone = now();
		printf("%lld\n",
		       WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL ? gone - *called : -1);
		usleep(atoi(argv[3]) * 1000);
	}
	return 0;
}
