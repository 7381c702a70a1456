#!/bin/bash
# Docker and a base image for the reference, on Debian as root. Prints the name of the base image.
#
# Starts a daemon where none answers (no iptables, no bridge: it also works inside a container); its process is written
# to /run/synthseg-native-dockerd.pid, its log to /var/log/synthseg-native-dockerd.log. `.ci/docker.sh stop` ends it.
# The base image is the usual one where a registry can be reached; elsewhere one is made with debootstrap, from the
# mirror that apt uses on this machine, and kept as a file for the next time (.ci/cache.sh says where).
set -euo pipefail

pid=/run/synthseg-native-dockerd.pid
log=/var/log/synthseg-native-dockerd.log
usual=python:3.11-slim-bookworm
made=synthseg-native-base:bookworm
kept=${SYNTHSEG_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/synthseg-native-ci}
kept=$kept/base-$(sha256sum "$0" | cut -c 1-12).tar

say() { echo "docker: $*" >&2; }

answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

stop() {
    [ -s $pid ] || return 0
    local number
    number=$(cat $pid)
    rm -f $pid
    [ "$(cat "/proc/$number/comm" 2>/dev/null)" = dockerd ] || return 0
    kill "$number"
    for _ in $(seq 100); do
        [ -d "/proc/$number" ] || return 0
        sleep 0.2
    done
    say "the daemon ($number) does not end"
}

start() {
    answers && return
    say "starting a daemon"
    setsid nohup dockerd --iptables=false --ip6tables=false --bridge=none </dev/null >$log 2>&1 &
    echo $! >$pid
    for _ in $(seq 150); do
        answers && return
        sleep 0.4
    done
    tail -n 30 $log >&2
    say "the daemon does not start: see $log"
    exit 1
}

make_base() {
    local folder proxy
    if [ -s "$kept" ] && docker import "$kept" $made >/dev/null 2>&1; then
        return
    fi
    folder=$(mktemp -d)
    eval "$(apt-config shell proxy Acquire::http::Proxy)"
    say "no registry answers: making $made with debootstrap"
    # shellcheck disable=SC2046 # no mirror is no argument
    http_proxy=${proxy:-${http_proxy:-}} debootstrap --variant=minbase --include=python3,python3-venv \
        bookworm "$folder/root" $("${0%/*}/mirror.sh") >"$folder/log" 2>&1 || {
        tail -n 20 "$folder/log" >&2
        say "debootstrap failed"
        exit 1
    }
    rm -rf "$folder"/root/var/cache/apt/archives/*.deb
    tar -C "$folder/root" -cf "$folder/base.tar" .
    docker import "$folder/base.tar" $made >/dev/null
    mkdir -p "${kept%/*}"
    rm -f "${kept%/*}"/base-*.tar # of earlier versions of this file
    mv "$folder/base.tar" "$kept.part" && mv "$kept.part" "$kept"
    rm -rf "$folder"
}

has() { docker image inspect "$1" >/dev/null 2>&1; }

if [ "${1:-start}" = stop ]; then
    stop
    exit
fi
start
if has $usual; then
    echo $usual
elif has $made; then
    echo $made
elif timeout 300 docker pull --quiet $usual >/dev/null 2>&1; then
    echo $usual
else
    make_base
    echo $made
fi
