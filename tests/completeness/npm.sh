#!/bin/sh
# usage: npm.sh REGISTRY PROJECT SCRATCH
#
# npm ci of a project with a lock file, its packages from the registry at this URL; then a command that
# one of them brought, by itself and through npx.
set -eu
export npm_config_registry="$1" npm_config_audit=false npm_config_fund=false
export npm_config_update_notifier=false
cp -r "$2" "$3/project"
cd "$3/project"
npm ci
test -s node_modules/phrases/built/phrases.json
node_modules/.bin/greet "$1"
npx --no-install greet "$1"
