/* A 64-bit program that calls through the 32-bit entry all the same: `int80 PORT`. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>

#include "calls32.h"

int main(int argc, char **argv)
{
	struct low *low = mmap(0, sizeof(*low), PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	if (low == MAP_FAILED)
		abort();
	all(low, atoi(argv[1]));
	return 0;
}
