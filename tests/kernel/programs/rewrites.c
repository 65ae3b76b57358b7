/*
 * Connects while another thread keeps rewriting the family in the address. Argument: udp, or the path of
 * a listening unix socket. Prints how many of 200 tries ended with the peer it wanted.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define TRIES 200

static volatile sa_family_t *family;
static sa_family_t wanted, other;

static void *rewrite(void *unused)
{
	for (;;) {
		*family = wanted;
		for (volatile int i = 0; i < 40; i++)
			;
		*family = other;
		for (volatile int i = 0; i < 40; i++)
			;
	}
	return unused;
}

int main(int argc, char **argv)
{
	struct sockaddr_in in = {.sin_port = htons(9)};
	struct sockaddr_un un = {0};
	int udp = argc > 1 && !strcmp(argv[1], "udp"), reached = 0;
	pthread_t thread;

	inet_pton(AF_INET, "127.0.0.9", &in.sin_addr);
	if (argc > 1)
		strncpy(un.sun_path, argv[1], sizeof(un.sun_path) - 1);
	family = udp ? &in.sin_family : &un.sun_family;
	wanted = udp ? AF_INET : AF_UNIX;
	other = udp ? AF_UNSPEC : AF_NETLINK;
	pthread_create(&thread, 0, rewrite, 0);
	usleep(20000);
	for (int i = 0; i < TRIES; i++) {
		int s = socket(wanted, udp ? SOCK_DGRAM : SOCK_STREAM, 0);
		struct sockaddr_storage peer;
		socklen_t size = sizeof(peer);

		connect(s, udp ? (void *)&in : (void *)&un, udp ? sizeof(in) : sizeof(un));
		reached += !getpeername(s, (void *)&peer, &size);
		close(s);
	}
	printf("%d\n", reached);
	fflush(stdout);
	_exit(0);
}
