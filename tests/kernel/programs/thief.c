/*
 * thief FILE RUNS: in each of so many children, one thread opens FILE while another one reads from every
 * descriptor it could get. Told at the end: {"runs", "opened", "stolen"}: children whose call returned a
 * descriptor, and children whose other thread had bytes of the file, told before it could be killed.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct shared {
	atomic_long opened, stolen;
	atomic_int ready;
};

static struct shared *shared;

static void *steal(void *unused)
{
	char bytes[64];

	(void)unused;
	atomic_store(&shared->ready, 1);
	for (;;)
		for (int fd = 3; fd < 6; fd++)
			if (pread(fd, bytes, sizeof(bytes), 0) > 0) {
				atomic_fetch_add(&shared->stolen, 1);
				_exit(0);
			}
}

static void child(const char *path)
{
	pthread_t thread;

	if (pthread_create(&thread, 0, steal, 0))
		_exit(3);
	while (!atomic_load(&shared->ready))
		;
	if (open(path, O_RDONLY) >= 0) {
		atomic_fetch_add(&shared->opened, 1);
		usleep(1000);
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	int runs = argc > 2 ? atoi(argv[2]) : 1;

	for (int fd = 3; fd < 64; fd++)
		close(fd);
	shared = mmap(0, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return 2;
	for (int run = 0; run < runs; run++) {
		pid_t pid;

		atomic_store(&shared->ready, 0);
		pid = fork();
		if (!pid)
			child(argv[1]);
		if (pid < 0 || waitpid(pid, 0, 0) != pid)
			return 2;
	}
	printf("{\"runs\": %d, \"opened\": %ld, \"stolen\": %ld}\n", runs, shared->opened,
	       shared->stolen);
	return 0;
}
