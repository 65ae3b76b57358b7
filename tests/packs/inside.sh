#!/bin/bash
# usage: inside.sh PASSWD GROUP DIRECTORY COMMAND...
#
# Runs the command in a mount and network namespace of its own: nothing outside of this machine can be
# reached, 169.254.169.254 is local, and there is a person more. Listeners write what they get to files
# in DIRECTORY. Exits as the command did. Needs root.
set -euo pipefail
if [[ $1 != --inside ]]; then
	exec unshare --mount --net --propagation private "$0" --inside "$@"
fi
passwd=$2 group=$3 directory=$4
shift 4
ip link set lo up
ip address add 169.254.169.254/32 dev lo
mount --bind "$passwd" /etc/passwd
mount --bind "$group" /etc/group
if [[ -n ${TOOLCHAIN:-} ]]; then # may be where only root may go
	mkdir -p "$HOME/toolchain"
	mount --bind "$TOOLCHAIN" "$HOME/toolchain"
fi
/usr/bin/python3 -I "$(dirname "$0")/listening.py" "$directory" &
listeners=$!
trap 'kill $listeners; wait $listeners || true' EXIT
for ((tries = 0; tries < 500; tries++)); do
	[[ -e $directory/ready ]] && break
	sleep 0.01
done
status=0
"$@" || status=$?
exit "$status"
