/*
 * usage: pace RATE SECONDS TREE-FILE
 *
 * Opens and closes the paths of TREE-FILE, RATE opens a second for SECONDS, in steps of a millisecond,
 * and prints how many opens it made and how many seconds that took.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char *paths[8192];
static int count;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	double rate = argc == 4 ? atof(argv[1]) : 0, seconds = rate > 0 ? atof(argv[2]) : 0, from;
	FILE *tree = seconds > 0 ? fopen(argv[3], "r") : 0;
	long made = 0, due;
	char line[4096];

	if (!tree)
		return 2;
	while (count < 8192 && fgets(line, sizeof(line), tree)) {
		line[strcspn(line, "\n")] = 0;
		paths[count++] = strdup(line);
	}
	from = now();
	while (now() - from < seconds) {
		due = (now() - from) * rate;
		if (due > rate * seconds)
			due = rate * seconds;
		for (; made < due; made++)
			close(open(paths[made % count], O_RDONLY));
		usleep(1000);
	}
	printf("%ld %.3f\n", made, now() - from);
	return 0;
}
