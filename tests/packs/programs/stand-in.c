/*
 * Stands in for any program that does harm: under whatever name it is installed it waits, as the real
 * one works, and then has its effect: a file in $EFFECTS under its name, with its arguments.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const char *directory = getenv("EFFECTS");
	const char *slash = strrchr(argv[0], '/');
	char path[4096];
	FILE *file;

	usleep(400000);
	if (!directory)
		return 2;
	snprintf(path, sizeof(path), "%s/%s", directory, slash ? slash + 1 : argv[0]);
	file = fopen(path, "a");
	if (!file)
		return 1;
	for (int i = 1; i < argc; i++)
		fprintf(file, "%s ", argv[i]);
	fputc('\n', file);
	return fclose(file) ? 1 : 0;
}
