/* Executes programs in every way there is, successfully and not. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define TRUE "/bin/true"
#define IN_CHILD(call)                                                                             \
	do {                                                                                       \
		if (fork() == 0) {                                                                 \
			call;                                                                      \
			_exit(0);                                                                  \
		}                                                                                  \
		wait(0);                                                                           \
	} while (0)

static char *const nothing[] = {0};
static char *volatile bad = (char *)8; /* no memory there */

static void file(const char *name, const char *text, mode_t mode)
{
	int fd = open(name, O_CREAT | O_WRONLY | O_TRUNC, mode);

	if (write(fd, text, strlen(text)) < 0)
		perror(name);
	close(fd);
}

static void copy(const char *from, const char *to)
{
	int in = open(from, O_RDONLY), out = open(to, O_CREAT | O_WRONLY, 0700);

	while (sendfile64(out, in, 0, 1 << 20) > 0)
		;
	close(in);
	close(out);
}

static void arguments(void)
{
	static char big[100001];
	char *const odd[] = {"odd", "", "new\nline", "\xff\xfe", "a b", "\"", 0};
	char *const none[] = {0};
	char *args[] = {"big", "first", big, "last", 0};

	IN_CHILD(execve(TRUE, odd, nothing));
	IN_CHILD(execve(TRUE, none, nothing));
	memset(big, 'x', sizeof(big) - 1);
	IN_CHILD(execve(TRUE, args, nothing));
	big[4000] = 0;
	IN_CHILD(execve(TRUE, args, nothing));
}

static void scripts(void)
{
	char *const args[] = {"argv0", "one", "two", 0};

	file("plain", "#!/bin/sh\n:\n", 0700);
	file("with-argument", "#!/bin/sh -e \n:\n", 0700);
	file("nested", "#!./plain\n", 0700);
	file("no-interpreter", "#!/missing\n", 0700);
	file("no-format", "nothing of the sort\n", 0700);
	file("no-permission", "#!/bin/sh\n", 0600);
	IN_CHILD(execve("plain", args, nothing));
	IN_CHILD(execve("./with-argument", args, nothing));
	IN_CHILD(execve("nested", args, nothing));
	IN_CHILD(execve("no-interpreter", args, nothing));
	IN_CHILD(execve("no-format", args, nothing));
	IN_CHILD(execve("no-permission", args, nothing));
	IN_CHILD(execve(".", args, nothing));
	IN_CHILD(execve("", args, nothing));
	IN_CHILD(execve(bad, args, nothing));
}

static void descriptors(void)
{
	char *const args[] = {"argv0", 0};
	int dir = open("/bin", O_PATH), memory = memfd_create("in memory", 0);
	int in = open(TRUE, O_RDONLY), gone;

	IN_CHILD(syscall(SYS_execveat, dir, "true", args, nothing, 0));
	IN_CHILD(syscall(SYS_execveat, AT_FDCWD, "plain", args, nothing, 0));
	IN_CHILD(syscall(SYS_execveat, dir, "missing", args, nothing, 0));
	IN_CHILD(syscall(SYS_execveat, in, "", args, nothing, AT_EMPTY_PATH));
	while (sendfile64(memory, in, 0, 1 << 20) > 0)
		;
	IN_CHILD(syscall(SYS_execveat, memory, "", args, nothing, AT_EMPTY_PATH));
	copy(TRUE, "deleted");
	gone = open("deleted", O_RDONLY);
	unlink("deleted");
	IN_CHILD(syscall(SYS_execveat, gone, "", args, nothing, AT_EMPTY_PATH));
}

static void *from_a_thread(void *unused)
{
	char *const args[] = {"from a thread", 0};

	execve(TRUE, args, nothing);
	return unused;
}

static void threaded(void)
{
	pthread_t thread;

	pthread_create(&thread, 0, from_a_thread, 0);
	pthread_join(thread, 0);
}

static void vforked(void)
{
	static char *const args[] = {"vforked", 0};

	if (vfork() == 0) {
		execve("/bin/missing", args, nothing);
		execve(TRUE, args, nothing);
		_exit(1);
	}
	wait(0);
}

static void names(void)
{
	char *const args[] = {"argv0", 0};

	symlink(TRUE, "link");
	copy(TRUE, "new\nline \xff");
	IN_CHILD(execve("link", args, nothing));
	IN_CHILD(execve("./new\nline \xff", args, nothing));
	IN_CHILD(execve("/proc/self/root/bin/true", args, nothing));
	IN_CHILD(chdir("/"); execve("bin/../bin/true", args, nothing));
}

int main(void)
{
	arguments();
	scripts();
	descriptors();
	names();
	vforked();
	IN_CHILD(threaded());
	return 0;
}
