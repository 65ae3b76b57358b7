/*
 * usage: reloads DIRECTORY
 *
 * Until DIRECTORY/stop exists: opens DIRECTORY/look-NAME itself, and DIRECTORY/kill-NAME in children, each
 * for NAME in neither, one, other, both, spared; every fourth round the children execute this program
 * to do so. Prints how many of the children there were and how many were killed for each NAME.
 *
 * usage: reloads open FILE
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *names[] = {"neither", "one", "other", "both", "spared"};
static int killed[5], made[5];

static void opens(const char *file)
{
	int fd = open(file, O_RDONLY);

	if (fd >= 0)
		close(fd);
}

static void child(const char *program, const char *directory, int name, int executes)
{
	char file[512];
	int status;
	pid_t pid;

	snprintf(file, sizeof(file), "%s/kill-%s", directory, names[name]);
	pid = fork();
	if (pid == 0) {
		if (executes)
			execl(program, program, "open", file, (char *)0);
		opens(file);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return;
	made[name]++;
	killed[name] += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

int main(int argc, char **argv)
{
	char file[512], stop[512];

	if (argc == 3 && !strcmp(argv[1], "open")) {
		opens(argv[2]);
		return 0;
	}
	if (argc != 2)
		return 2;
	snprintf(stop, sizeof(stop), "%s/stop", argv[1]);
	for (int round = 0; access(stop, F_OK); round++)
		for (int name = 0; name < 5; name++) {
			snprintf(file, sizeof(file), "%s/look-%s", argv[1], names[name]);
			opens(file);
			child(argv[0], argv[1], name, round % 4 == 0);
		}
	printf("{");
	for (int name = 0; name < 5; name++)
		printf("%s\"%s\": [%d, %d]", name ? ", " : "", names[name], made[name],
		       killed[name]);
	printf("}\n");
	return 0;
}
