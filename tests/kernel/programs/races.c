/*
 * races DIRECTORY RACES: opens DIRECTORY/link/file so often while another thread makes `link` a symbolic
 * link to `denied` and to `allowed` by turns, then DIRECTORY/name/file while it exchanges the names of
 * `name` and `denied` if it may. Told: {"races", "allowed", "refused", "won"}: opens of a file that
 * begins with P, those with EPERM, and those of a file that begins with S, a secret.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static atomic_int stage;
static long allowed, refused, won;

static void *flip(void *unused)
{
	(void)unused;
	for (int turn = 0;; turn++) {
		int now = atomic_load(&stage);

		if (now == 2)
			return 0;
		if (now == 1) {
			renameat2(AT_FDCWD, "name", AT_FDCWD, "denied", RENAME_EXCHANGE);
			continue;
		}
		if (symlink(turn & 1 ? "denied" : "allowed", "other") == 0)
			rename("other", "link");
	}
}

static void race(const char *path, int races)
{
	for (int i = 0; i < races; i++) {
		char first = 0;
		int fd = open(path, O_RDONLY);

		if (fd < 0) {
			refused += errno == EPERM;
			continue;
		}
		if (read(fd, &first, 1) == 1) {
			allowed += first == 'P';
			won += first == 'S';
		}
		close(fd);
	}
}

int main(int argc, char **argv)
{
	int races = argc > 2 ? atoi(argv[2]) : 1;
	pthread_t thread;

	if (chdir(argv[1]) || pthread_create(&thread, 0, flip, 0))
		return 2;
	race("link/file", races);
	atomic_store(&stage, 1);
	race("name/file", races);
	atomic_store(&stage, 2);
	pthread_join(thread, 0);
	printf("{\"races\": %d, \"allowed\": %ld, \"refused\": %ld, \"won\": %ld}\n", 2 * races, allowed,
	       refused, won);
	return 0;
}
