#!/bin/sh
# usage: pip.sh INDEX SCRATCH
#
# A fresh environment, a package with dependencies into it from the index at this URL, and the package
# at work. The machine's own configuration of pip, another index perhaps, is left out.
set -eu
export PIP_CONFIG_FILE=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
cd "$2"
/usr/bin/python3 -m venv fresh
fresh/bin/pip install --quiet --index-url "$1" requests
fresh/bin/python -c 'import sys, requests; requests.get(sys.argv[1]).raise_for_status()' "$1"
