#!/bin/sh
# What outlives a clone: environments and wheels that one run on this machine made are found by the next, in any clone.
#
# .ci/cache.sh take   links what is kept into .envs/ and .wheelhouse/ of this clone
# .ci/cache.sh keep   moves there what this clone has made, and leaves links in its place
#
# The folder is $SYNTHSEG_CI_CACHE, else ~/.cache/synthseg-native-ci. Every name ends in a hash of what the thing is made
# from, so that nothing stale is found; what nobody took for 30 days is removed. Nothing there: all is made anew.
set -eu
cd "$(dirname "$0")/.."
cache=${SYNTHSEG_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/synthseg-native-ci}

# Complete environments (with a hash, no .tmp-PID) and complete wheelhouses.
names() { (cd "$1" && ls -d ./*-*) 2>/dev/null | sed 's,^\./,,' | grep -E "$2" || true; }
environments='^[a-z-]+-[0-9a-f]{12}$'
wheels='^[0-9a-f]{12}-(amd64|arm64)$'

take() { # take FOLDER PATTERN
    mkdir -p "$1" "$cache/$1"
    for name in $(names "$cache/$1" "$2"); do
        kept=$cache/$1/$name
        if [ -e "$kept/bin" ] && ! "$kept/bin/python" -I -c "" 2>/dev/null; then
            rm -rf "$kept" # its Python is gone
        elif [ ! -e "$1/$name" ]; then
            ln -sfn "$kept" "$1/$name"
        fi
    done
}

keep() { # keep FOLDER PATTERN
    mkdir -p "$cache/$1"
    for name in $(names "$1" "$2"); do
        kept=$cache/$1/$name
        case $name in code-*) continue ;; esac
        if [ ! -L "$1/$name" ] && [ ! -e "$kept" ]; then
            # Whole or not at all, also where the cache is another file system.
            rm -rf "$kept.tmp"
            mv "$1/$name" "$kept.tmp" && mv "$kept.tmp" "$kept" && ln -s "$kept" "$1/$name"
        fi
        [ ! -L "$1/$name" ] || touch -c "$kept" # in use
    done
    find "$cache/$1" -mindepth 1 -maxdepth 1 -mtime +30 -exec rm -rf {} +
}

case ${1:-} in
take | keep)
    "$1" .envs "$environments"
    "$1" .wheelhouse "$wheels"
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
