/*
 * downpour DIRECTORY PORT SECONDS: so long, sixteen threads do what is denied, each by itself, in a thread
 * that it starts, and at the end of a chain of three forks: read DIRECTORY/key, execute DIRECTORY/program,
 * delete DIRECTORY/kept, connect to 127.0.0.1:PORT. In between they open DIRECTORY/open, which is not.
 * Told: {"tried", "refused", "opened", "rounds", "forked", "started"}: attempts, those that ended with
 * EPERM, opens that did not, rounds of the sixteen, processes at the end of a chain, threads. Some kernels
 * have EAGAIN for a child that could not be tagged: there are fewer of those then.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define THREADS 16
#define CHAIN 3

struct told {
	atomic_long tried, refused, opened, rounds, forked, started;
};

static struct told *told;
static time_t until;
static int port;

static void count(long result)
{
	atomic_fetch_add(&told->tried, 1);
	if (result < 0 && errno == EPERM)
		atomic_fetch_add(&told->refused, 1);
}

static void denied(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = open("key", O_RDONLY);

	count(fd);
	if (fd >= 0)
		close(fd);
	count(unlink("kept"));
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	count(connect(fd, (struct sockaddr *)&address, sizeof(address)));
	close(fd);
}

static void chain(int depth)
{
	char *argv[] = {"program", "made", 0};
	pid_t child = fork();

	if (child > 0) {
		waitpid(child, 0, 0);
		return;
	}
	if (child < 0)
		return;
	if (depth > 1) {
		chain(depth - 1);
	} else {
		atomic_fetch_add(&told->forked, 1);
		denied();
		count(execv("program", argv));
	}
	_exit(0);
}

static void *start(void *unused)
{
	atomic_fetch_add(&told->started, 1);
	denied();
	return unused;
}

static void *rain(void *unused)
{
	while (time(0) < until) {
		pthread_t thread;

		for (int i = 0; i < 8; i++) {
			int fd = open("open", O_RDONLY);

			if (fd >= 0) {
				atomic_fetch_add(&told->opened, 1);
				close(fd);
			}
		}
		atomic_fetch_add(&told->rounds, 1);
		denied();
		chain(CHAIN);
		if (!pthread_create(&thread, 0, start, 0))
			pthread_join(thread, 0);
	}
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS];
	int failed;

	if (argc != 4 || chdir(argv[1]))
		return 2;
	port = atoi(argv[2]);
	until = time(0) + atoi(argv[3]);
	told = mmap(0, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (told == MAP_FAILED)
		return 2;
	for (int i = 0; i < THREADS; i++)
		while ((failed = pthread_create(&threads[i], 0, rain, 0)))
			if (failed != EAGAIN)
				return 2;
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], 0);
	printf("{\"tried\": %ld, \"refused\": %ld, \"opened\": %ld, \"rounds\": %ld, \"forked\": "
	       "%ld, "
	       "\"started\": %ld}\n",
	       told->tried, told->refused, told->opened, told->rounds, told->forked, told->started);
	return 0;
}
