/* Connects sockets in every way there is, successfully and not, in a network of its own. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define V4(a, p)                                                                                   \
	(&(struct sockaddr_in){                                                                    \
		.sin_family = AF_INET, .sin_port = htons(p), .sin_addr.s_addr = inet_addr(a)})

static void network_of_its_own(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};

	if (unshare(CLONE_NEWNET) ||
	    ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCSIFFLAGS, &request)) {
		perror("a network of its own");
		exit(1);
	}
}

static struct sockaddr_in6 v6(const char *text, int port)
{
	struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};

	inet_pton(AF_INET6, text, &address.sin6_addr);
	return address;
}

static int to_v4(int type, const char *text, int port)
{
	int fd = socket(AF_INET, type, 0);

	connect(fd, V4(text, port), sizeof(struct sockaddr_in));
	return fd;
}

static int to_v6(int type, const char *text, int port)
{
	struct sockaddr_in6 address = v6(text, port);
	int fd = socket(AF_INET6, type, 0);

	connect(fd, &address, sizeof(address));
	return fd;
}

static void tcp(int port)
{
	struct sockaddr unspecified = {.sa_family = AF_UNSPEC};
	int fd, listener = socket(AF_INET6, SOCK_STREAM, 0);
	struct sockaddr_in6 any = v6("::", port);

	bind(listener, &any, sizeof(any));
	listen(listener, 100);
	fd = to_v4(SOCK_STREAM, "127.0.0.1", port);
	connect(fd, V4("127.0.0.1", port), sizeof(struct sockaddr_in)); /* again */
	connect(fd, &unspecified, sizeof(unspecified));
	connect(fd, V4("127.0.0.1", port), sizeof(struct sockaddr_in));
	fd = to_v4(SOCK_STREAM | SOCK_NONBLOCK, "127.0.0.2", port);
	connect(fd, V4("127.0.0.2", port), sizeof(struct sockaddr_in));
	to_v4(SOCK_STREAM, "127.0.0.1", port + 1); /* refused */
	to_v4(SOCK_STREAM | SOCK_NONBLOCK, "127.0.0.1", port + 1);
	to_v4(SOCK_STREAM, "0.0.0.0", port);
	to_v4(SOCK_STREAM, "192.0.2.1", port); /* unreachable */
	to_v4(SOCK_STREAM, "255.255.255.255", port);
	to_v6(SOCK_STREAM, "::1", port);
	to_v6(SOCK_STREAM, "::", port);
	to_v6(SOCK_STREAM, "::ffff:127.0.0.1", port);
	to_v6(SOCK_STREAM, "::1", port + 1);
	to_v6(SOCK_STREAM, "2001:db8::1", port);
	connect(listener, V4("127.0.0.1", port), sizeof(struct sockaddr_in));
}

static void udp(void)
{
	struct sockaddr unspecified = {.sa_family = AF_UNSPEC};
	int fd = to_v4(SOCK_DGRAM, "127.0.0.1", 53);

	connect(fd, V4("127.0.0.3", 5353), sizeof(struct sockaddr_in));
	connect(fd, &unspecified, sizeof(unspecified));
	to_v4(SOCK_DGRAM, "192.0.2.1", 53);
	to_v4(SOCK_DGRAM, "0.0.0.0", 53);
	fd = to_v6(SOCK_DGRAM, "::1", 53);
	connect(fd, V4("127.0.0.1", 53), sizeof(struct sockaddr_in));
	to_v6(SOCK_DGRAM, "::ffff:127.0.0.1", 53);
	fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	connect(fd, V4("127.0.0.1", 0), sizeof(struct sockaddr_in));
}

static int to_unix(int type, const void *path, size_t length)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, type, 0);

	memcpy(address.sun_path, path, length);
	connect(fd, &address, offsetof(struct sockaddr_un, sun_path) + length);
	return fd;
}

static void bound(int type, const void *path, size_t length, int listening)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, type, 0);

	memcpy(address.sun_path, path, length);
	if (bind(fd, &address, offsetof(struct sockaddr_un, sun_path) + length))
		perror("bind");
	if (listening)
		listen(fd, 10);
}

static void local(void)
{
	static const char whole[108] = {[0 ... 107] = 'u'};
	int pair[2];

	bound(SOCK_STREAM, "stream", 7, 1);
	bound(SOCK_STREAM, "deaf", 5, 0);
	bound(SOCK_DGRAM, "datagram\nodd\xff", 14, 0);
	bound(SOCK_STREAM, "\0abstract\0with\0nuls", 19, 1);
	bound(SOCK_STREAM, whole, sizeof(whole), 1);
	to_unix(SOCK_STREAM, "stream", 7);
	to_unix(SOCK_STREAM, "stream", 6); /* not terminated */
	to_unix(SOCK_STREAM, "stream\0behind", 13);
	to_unix(SOCK_SEQPACKET, "stream", 7);
	to_unix(SOCK_STREAM, "deaf", 5);
	to_unix(SOCK_STREAM, "missing", 8);
	to_unix(SOCK_STREAM, "/proc/self/cwd/stream", 22);
	to_unix(SOCK_DGRAM, "datagram\nodd\xff", 14);
	to_unix(SOCK_STREAM, "\0abstract\0with\0nuls", 19);
	to_unix(SOCK_STREAM, "\0abstract", 9);
	to_unix(SOCK_STREAM, whole, sizeof(whole));
	to_unix(SOCK_STREAM, "", 0);
	socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
	connect(pair[0], &(struct sockaddr_un){.sun_family = AF_UNIX, .sun_path = "stream"}, 9);
}

static void nonsense(void)
{
	struct sockaddr strange = {.sa_family = 200};
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	int fd = socket(AF_INET, SOCK_STREAM, 0), file = open("/dev/null", O_RDWR);

	connect(999, V4("127.0.0.1", 1), sizeof(struct sockaddr_in));
	connect(-1, V4("127.0.0.1", 1), sizeof(struct sockaddr_in));
	connect(file, V4("127.0.0.1", 1), sizeof(struct sockaddr_in));
	connect(fd, (struct sockaddr *)8, sizeof(struct sockaddr_in));
	connect(fd, 0, 0);
	connect(fd, V4("127.0.0.1", 1), 1);
	connect(fd, V4("127.0.0.1", 1), 8);
	connect(fd, V4("127.0.0.1", 1), 5000);
	connect(fd, &strange, sizeof(strange));
	connect(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), (struct sockaddr *)&kernel,
		sizeof(kernel));
}

/* The 32-bit entry wants its pointers below 4 GiB. */
static void through_the_32_bit_entry(int port)
{
	unsigned int *low = mmap(0, 4096, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	long result;

	memcpy(low + 16, V4("127.0.0.1", port), sizeof(struct sockaddr_in));
	low[0] = fd;
	low[1] = (unsigned int)(unsigned long)(low + 16);
	low[2] = sizeof(struct sockaddr_in);
	if (fork() == 0) {
		asm volatile("int $0x80" : "=a"(result) : "a"(102), "b"(3), "c"(low) : "memory");
		asm volatile("int $0x80"
			     : "=a"(result)
			     : "a"(362), "b"(fd), "c"(low + 16), "d"(low[2])
			     : "memory");
		_exit(0);
	}
	wait(0);
}

int main(void)
{
	int port = 20000;

	network_of_its_own();
	tcp(port);
	udp();
	local();
	nonsense();
	through_the_32_bit_entry(port);
	return 0;
}
