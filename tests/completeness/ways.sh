#!/bin/sh
# usage: ways.sh PROGRAMS SCRATCH
#
# Programs that open, execute and connect in every way there is, built and run.
set -eu
cd "$2"
for program in opens execs connects; do
	gcc -O2 -Wall -Wextra -Werror -pthread -o "$program" "$1/$program.c"
	mkdir "$program.d"
	(cd "$program.d" && "../$program")
done
! rmdir . 2> /dev/null
