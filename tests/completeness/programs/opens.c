/* Opens files in the current directory in every way there is, successfully and not. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 6
#define ROUNDS 300

static void every_call(void)
{
	struct open_how how = {.flags = O_RDWR | O_CREAT, .mode = 0600, .resolve = RESOLVE_BENEATH};
	int dir = open(".", O_DIRECTORY | O_PATH);

	syscall(SYS_creat, "creat", 0600);
	syscall(SYS_open, "creat", O_RDONLY);
	syscall(SYS_openat, dir, "openat", O_CREAT | O_WRONLY | O_TRUNC, 0600);
	syscall(SYS_openat2, dir, "openat2", &how, sizeof(how));
	syscall(SYS_openat2, dir, "../escape", &how, sizeof(how));
	syscall(SYS_openat2, dir, "openat2", &how, 3);
	open("openat", O_PATH);
	open(".", O_TMPFILE | O_RDWR, 0600);
	open("made", O_CREAT | O_EXCL, 0600);
	open("made", O_CREAT | O_EXCL, 0600);
}

static void names(void)
{
	static const char *const odd[] = {
		"new\nline",	      "qu\"ote'<>", "\033[31mred", "\xff\xfe not utf-8",
		"trailing (deleted)", " ",	    "\\x41"};
	char long_name[256], proc[64];
	int fd;

	for (size_t i = 0; i < sizeof(odd) / sizeof(*odd); i++)
		open(odd[i], O_CREAT | O_RDWR, 0600);
	memset(long_name, 'n', 255);
	long_name[255] = 0;
	fd = open(long_name, O_CREAT | O_RDWR, 0600);
	unlink(long_name);
	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
	open(proc, O_RDONLY);
	symlink("made", "link");
	link("made", "hard");
	open("link", O_RDONLY);
	open("link", O_RDONLY | O_NOFOLLOW);
	open("link", O_PATH | O_NOFOLLOW);
	open("hard", O_RDONLY);
	open(".././../././/etc//passwd", O_RDONLY);
	open("/proc/self/root/etc/passwd", O_RDONLY);
	open("/proc/self/cwd/made", O_RDONLY);
}

static void deep(void)
{
	static char whole[4096];
	int top = open(".", O_DIRECTORY), dir = dup(top), next;

	for (int i = 0; i < 180; i++) {
		mkdirat(dir, "a-directory-far-below", 0700);
		next = openat(dir, "a-directory-far-below", O_DIRECTORY);
		close(dir);
		dir = next;
		if (strlen(whole) + 30 < sizeof(whole))
			strcat(whole, "a-directory-far-below/");
	}
	strcat(whole, "file");
	openat(dir, "file", O_CREAT | O_WRONLY, 0600);
	openat(top, whole, O_CREAT | O_WRONLY, 0600);
	close(dir);
}

static void failures(void)
{
	struct rlimit limit = {.rlim_cur = 3, .rlim_max = 1024};

	open("", O_RDONLY);
	open((char *)8, O_RDONLY);
	open("missing", O_RDONLY);
	open("made/below", O_RDONLY);
	open(".", O_WRONLY);
	openat(999, "made", O_RDONLY);
	symlink("loop", "loop");
	open("loop", O_RDONLY);
	if (fork() == 0) {
		setrlimit(RLIMIT_NOFILE, &limit);
		_exit(open("made", O_RDONLY) >= 0);
	}
	wait(0);
}

static void no_files(void)
{
	int memory = memfd_create("in memory", 0), pair[2], pipes[2];
	char proc[64];

	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", memory);
	open(proc, O_RDONLY);
	pipe(pipes);
	snprintf(proc, sizeof(proc), "/dev/fd/%d", pipes[0]);
	open(proc, O_RDONLY);
	socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
	snprintf(proc, sizeof(proc), "/dev/fd/%d", pair[0]);
	open(proc, O_RDONLY);
	open("/dev/null", O_RDWR);
	open("/dev/ptmx", O_RDWR | O_NOCTTY);
	open("/sys/kernel/mm", O_DIRECTORY);
	open("/proc/self/status", O_RDONLY);
}

static void by_handle(void)
{
	struct {
		struct file_handle handle;
		unsigned char room[MAX_HANDLE_SZ];
	} found = {.handle.handle_bytes = MAX_HANDLE_SZ};
	int mount, dir = open(".", O_DIRECTORY);

	if (!name_to_handle_at(dir, "made", &found.handle, &mount, 0))
		open_by_handle_at(dir, &found.handle, O_RDONLY);
}

static void nothing(int number)
{
	(void)number;
}

/* Interrupted while it waits for a writer, restarted by the kernel, then interrupted for good. */
static void interrupted(void)
{
	struct itimerval soon = {.it_value.tv_usec = 100000};
	struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART};
	pid_t waiting;

	mkfifo("fifo", 0600);
	waiting = fork();
	if (waiting == 0) {
		sigaction(SIGALRM, &action, 0);
		setitimer(ITIMER_REAL, &soon, 0);
		open("fifo", O_RDONLY);
		_exit(0);
	}
	usleep(400000);
	open("fifo", O_WRONLY);
	waitpid(waiting, 0, 0);
	action.sa_flags = 0;
	sigaction(SIGALRM, &action, 0);
	setitimer(ITIMER_REAL, &soon, 0);
	open("fifo", O_RDONLY);
	waiting = fork();
	if (waiting == 0) {
		open("fifo", O_RDONLY);
		_exit(0);
	}
	usleep(200000);
	kill(waiting, SIGKILL);
	waitpid(waiting, 0, 0);
}

static void in_a_chroot(void)
{
	mkdir("jail", 0700);
	if (fork() == 0) {
		if (chroot("jail") || chdir("/"))
			_exit(1);
		open("/inside", O_CREAT | O_WRONLY, 0600);
		open("/etc/passwd", O_RDONLY);
		open("../../inside", O_RDONLY);
		_exit(0);
	}
	wait(0);
}

/* The 32-bit entry wants its pointers below 4 GiB. */
static void through_the_32_bit_entry(void)
{
	char *low = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT,
			 -1, 0);
	long result;

	strcpy(low, "made");
	if (fork() == 0) {
		asm volatile("int $0x80"
			     : "=a"(result)
			     : "a"(5), "b"(low), "c"(O_RDONLY), "d"(0)
			     : "memory");
		asm volatile("int $0x80"
			     : "=a"(result)
			     : "a"(295), "b"(-100), "c"(low), "d"(O_RDONLY), "S"(0)
			     : "memory");
		strcpy(low, "not made");
		asm volatile("int $0x80"
			     : "=a"(result)
			     : "a"(5), "b"(low), "c"(O_RDONLY), "d"(0)
			     : "memory");
		_exit(0);
	}
	wait(0);
}

static void *opener(void *number)
{
	char name[32];

	for (int i = 0; i < ROUNDS; i++) {
		snprintf(name, sizeof(name), "t%ld-%d", (long)number, i % 7);
		close(open(name, i % 3 ? O_RDONLY : O_RDWR | O_CREAT, 0600));
	}
	return 0;
}

static void threads(void)
{
	pthread_t thread[THREADS];

	for (long i = 0; i < THREADS; i++)
		pthread_create(&thread[i], 0, opener, (void *)i);
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], 0);
}

int main(void)
{
	every_call();
	names();
	deep();
	failures();
	no_files();
	by_handle();
	interrupted();
	in_a_chroot();
	through_the_32_bit_entry();
	threads();
	return 0;
}
