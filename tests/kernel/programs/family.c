/*
 * Starts a process in each way there is, each of which opens a file named after the way and ends with
 * a code or by a signal of its own. Prints {"how", "pid", "thread"} as each one does it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void does(const char *how)
{
	char line[128];
	int fd = open(how, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
	int size = snprintf(line, sizeof(line), "{\"how\": \"%s\", \"pid\": %d, \"thread\": %d}\n",
			    how, getpid(), (int)syscall(SYS_gettid));

	if (fd < 0 || write(1, line, size) != size)
		abort();
	close(fd);
}

static void *thread(void *how)
{
	does(how);
	return 0;
}

static int cloned(void *how)
{
	does(how);
	return 4;
}

static void wait_for(pid_t pid)
{
	if (pid < 0 || waitpid(pid, 0, __WALL) != pid)
		abort();
}

int main(void)
{
	static char stack[2][64 << 10];
	pthread_t other;
	int tells[2];
	char byte;
	pid_t pid;

	does("itself");
	pid = fork();
	if (!pid) {
		does("fork");
		_exit(2);
	}
	wait_for(pid);
	pid = vfork();
	if (!pid) {
		execl("/proc/self/exe", "family", "vfork", NULL);
		_exit(99);
	}
	wait_for(pid);
	wait_for(clone(cloned, stack[0] + sizeof(stack[0]), SIGCHLD, "clone"));
	/* A sibling of ours: our parent is to reap it. */
	if (clone(cloned, stack[1] + sizeof(stack[1]), CLONE_PARENT | SIGCHLD, "sibling") < 0)
		abort();
	if (pipe(tells))
		abort();
	pid = fork();
	if (!pid) {
		close(tells[0]);
		setsid();
		if (fork())
			_exit(0);
		does("daemon");
		raise(SIGKILL);
	}
	close(tells[1]);
	wait_for(pid);
	if (read(tells[0], &byte, 1)) /* until the daemon is gone */
		abort();
	if (pthread_create(&other, 0, thread, "thread") || pthread_join(other, 0))
		abort();
	return 6;
}

/* Where vfork's child comes back to: before main, so that it does only this. */
__attribute__((constructor)) static void again(int argc, char **argv)
{
	if (argc < 2)
		return;
	does(argv[1]);
	_exit(3);
}
