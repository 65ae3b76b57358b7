/*
 * A process whose first thread is not its last. "goes": the leader ends, another thread opens a file
 * after that and ends the process. "execs": that thread replaces the process.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *what;

static void say(const char *name)
{
	char line[128];
	int size = snprintf(line, sizeof(line), "{\"did\": \"%s\", \"pid\": %d, \"thread\": %d}\n",
			    name, getpid(), (int)syscall(SYS_gettid));

	if (write(1, line, size) != size)
		abort();
}

static void *other(void *none)
{
	if (!strcmp(what, "execs")) {
		say("execs");
		execl("/proc/self/exe", "leader", "after", NULL);
		abort();
	}
	usleep(50 * 1000); /* the leader is a zombie by now */
	close(open("late", O_CREAT | O_WRONLY, 0644));
	say("opened");
	syscall(SYS_exit, 5);
	return 0;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	what = argv[1];
	if (!strcmp(what, "after")) {
		close(open("after", O_CREAT | O_WRONLY, 0644));
		say("after");
		return 8;
	}
	if (pthread_create(&thread, 0, other, 0))
		abort();
	if (!strcmp(what, "goes"))
		syscall(SYS_exit, 3);
	pause();
}
