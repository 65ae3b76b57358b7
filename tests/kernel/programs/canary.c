/* Makes the file it is given, first of all; exit code 2 without one. */
#include <fcntl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	if (open(argv[1], O_CREAT | O_WRONLY, 0644) < 0)
		return 1;
	return 0;
}
