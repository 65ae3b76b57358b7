/* A 32-bit program, without a library: `compat PORT`. */
#include "calls32.h"

static struct low low;

__attribute__((used)) static void begin(const unsigned int *stack)
{
	const char *text = (const char *)stack[2];
	int port = 0;

	while (*text)
		port = port * 10 + *text++ - '0';
	all(&low, port);
	call32(1, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start:\n\tmov %esp, %eax\n\tpush %eax\n\tcall begin\n");
