/*
 * A program that an identity may cover: tells when it has begun, opens "first", waits for a byte on
 * standard input, forks a child that opens "child", and opens "second". With `then PROGRAM` it
 * becomes that program in the end.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void opens(const char *name)
{
	close(open(name, O_CREAT | O_WRONLY, 0644));
}

int main(int argc, char **argv)
{
	char byte;

	opens("first");
	if (write(1, "\"begun\"\n", 8) != 8 || read(0, &byte, 1) != 1)
		abort();
	if (!fork()) {
		opens("child");
		_exit(0);
	}
	wait(0);
	opens("second");
	if (argc > 2 && !strcmp(argv[1], "then")) {
		execv(argv[2], argv + 2);
		abort();
	}
}
