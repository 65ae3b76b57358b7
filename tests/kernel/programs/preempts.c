/*
 * preempts FILE OTHER SECONDS: two threads open OTHER all the time, and on the same CPU a third one wakes
 * up among them, wherever they are just then: it opens FILE, and forks children that do. Told at the end:
 * {"tried", "opened", "forked", "refused", "lost"}: opens of FILE and those that were let through, forks
 * and those that failed, and children that could open it whenever they tried.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TRIES 20 /* of a child */

static const char *file, *other;
static atomic_int over;

static void *open_other(void *unused)
{
	(void)unused;
	while (!over)
		close(open(other, O_RDONLY));
	return 0;
}

static void sleep_us(long us)
{
	struct timespec time = {0, us * 1000};

	nanosleep(&time, 0);
}

static int opens(void)
{
	int fd = open(file, O_RDONLY);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static void child(void)
{
	int opened = 0;

	for (int i = 0; i < TRIES; i++) {
		sleep_us(1000);
		opened += opens();
	}
	_exit(opened == TRIES);
}

int main(int argc, char **argv)
{
	int tried = 0, opened = 0, forked = 0, refused = 0, lost = 0, status;
	time_t end = time(0) + atoi(argv[3]);
	pthread_t threads[2];
	cpu_set_t set;

	(void)argc;
	file = argv[1];
	other = argv[2];
	CPU_ZERO(&set);
	CPU_SET(0, &set);
	sched_setaffinity(0, sizeof(set), &set);
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], 0, open_other, 0);
	while (time(0) < end) {
		sleep_us(100);
		tried++;
		opened += opens();
		if (tried % 8)
			continue;
		sleep_us(100);
		pid_t pid = fork();
		if (!pid)
			child();
		forked++;
		if (pid < 0) {
			refused++;
			continue;
		}
		waitpid(pid, &status, 0);
		lost += WIFEXITED(status) && WEXITSTATUS(status) == 1;
	}
	over = 1;
	printf("{\"tried\": %d, \"opened\": %d, \"forked\": %d, \"refused\": %d, \"lost\": %d}\n", tried,
	       opened, forked, refused, lost);
	return 0;
}
