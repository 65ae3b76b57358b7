/*
 * usage: storm MODE STOP
 *
 * Forks, and executes itself, as fast as it can until the file STOP exists; whoever is alive then sleeps.
 * MODE  chain    each process forks the next one and ends at once
 *       execs    the same, and the next one executes this program anew
 *       tree     one process that lives forks children that execute, fork once more and end
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int stopped(const char *file)
{
	return access(file, F_OK) == 0;
}

static void rest(void)
{
	for (;;)
		pause();
}

static void go_on(char **argv, const char *mode)
{
	execl(argv[0], argv[0], mode, argv[2], (char *)0);
	_exit(1);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	while (!stopped(argv[2])) {
		pid_t child = fork();

		if (child < 0)
			continue;
		if (!strcmp(argv[1], "tree")) {
			if (!child)
				go_on(argv, "leaf");
			waitpid(child, 0, 0);
		} else if (!strcmp(argv[1], "leaf")) {
			if (child)
				waitpid(child, 0, 0);
			return 0;
		} else {
			if (child)
				_exit(0);
			if (!strcmp(argv[1], "execs"))
				go_on(argv, "execs");
		}
	}
	rest();
}
