/*
 * usage: opens ROUNDS TREE-FILE
 *
 * Opens and closes every path of TREE-FILE (one a line) ROUNDS times, once before that to warm up, and
 * prints ns per open+close.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char *paths[8192];
static int count;

static void once(void)
{
	for (int i = 0; i < count; i++) {
		int fd = open(paths[i], O_RDONLY);

		if (fd < 0) {
			perror(paths[i]);
			exit(1);
		}
		close(fd);
	}
}

int main(int argc, char **argv)
{
	int rounds = argc == 3 ? atoi(argv[1]) : 0;
	FILE *tree = rounds ? fopen(argv[2], "r") : 0;
	struct timespec from, to;
	char line[4096];

	if (!tree)
		return 2;
	while (count < 8192 && fgets(line, sizeof(line), tree)) {
		line[strcspn(line, "\n")] = 0;
		paths[count++] = strdup(line);
	}
	once();
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (int i = 0; i < rounds; i++)
		once();
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("%.1f\n",
	       ((to.tv_sec - from.tv_sec) * 1e9 + (to.tv_nsec - from.tv_nsec)) / rounds / count);
	return 0;
}
