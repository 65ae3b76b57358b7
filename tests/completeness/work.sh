#!/bin/sh
# usage: work.sh BARE-REPOSITORY PROGRAMS SCRATCH
#
# What completeness is measured on: a clone and a C build, then what ways.sh does.
set -eu
cd "$3"
git clone --quiet "$1" source
cd source
# As out of a tarball, or it wants autotools: nothing is older than what it was made of, and no .git.
git ls-files -z | xargs -0 touch -d @1000000000
rm -rf .git
./configure --quiet --disable-nls
make --silent -j2 MAKEINFO=true
./hello
"$(dirname "$0")/ways.sh" "$2" "$3"
