#!/bin/bash
# The environments of Linux arm64 on an x86-64 Debian machine, as root, by QEMU's user mode.
#
# .ci/arm64.sh root           a root file system for arm64: makes it where it is missing, prints its folder
# .ci/arm64.sh python NAME    an environment of this project in it, from its lock: prints a program that runs its Python
#                             from outside, with the same paths for this checkout and for /tmp
# .ci/arm64.sh run WORDS ...  runs a command in it, in the folder of the call
#
# The root is kept beside .ci/cache.sh's things, by what this file says, and the environments beside it: they take the
# place of .envs/ there. Every call mounts what it needs in a namespace of its own, so that nothing stays mounted.
set -euo pipefail
folder=$PWD
cd "$(dirname "$0")/.."
checkout=$PWD
cache=${SYNTHSEG_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/synthseg-native-ci}
root=$cache/arm64-$(sha256sum .ci/arm64.sh | cut -c 1-12)
envs=$cache/arm64-envs
binfmt=/proc/sys/fs/binfmt_misc

say() { echo "arm64: $*" >&2; }

packages() {
    local missing=() pair
    for pair in qemu-aarch64-static:qemu-user-static debootstrap:debootstrap; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} -eq 0 ] || {
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    }
}

emulate() { # The kernel runs arm64 programs by QEMU, also in another root (F: it has it open already)
    [ -e $binfmt/status ] || mount -t binfmt_misc binfmt_misc $binfmt 2>/dev/null || {
        say "this kernel has no binfmt_misc, or lends it to nobody here: no arm64 program can run"
        exit 3
    }
    [ -e $binfmt/synthseg-arm64 ] || printf '%s' ':synthseg-arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64-static:OCF' >$binfmt/register
}

make_root() {
    local made proxy
    packages
    emulate
    [ ! -e "$root/made" ] || return 0
    mkdir -p "$cache"
    made=$(mktemp -d "$cache/arm64.XXXXXX")
    eval "$(apt-config shell proxy Acquire::http::Proxy)"
    say "making a root file system, some six minutes, once"
    # shellcheck disable=SC2046 # no mirror is no argument
    http_proxy=${proxy:-${http_proxy:-}} debootstrap --arch=arm64 --variant=minbase --foreign \
        --include=python3,python3-venv,ca-certificates bookworm "$made" $(.ci/mirror.sh) >"$made.log" 2>&1 &&
        chroot "$made" /debootstrap/debootstrap --second-stage >>"$made.log" 2>&1 || {
        tail -n 20 "$made.log" >&2
        say "debootstrap failed"
        exit 1
    }
    rm -rf "$made.log" "$made"/var/cache/apt/archives/*.deb
    find "$cache" -maxdepth 1 -name 'arm64-*' ! -name arm64-envs -exec rm -rf {} +
    touch "$made/made" && mv "$made" "$root"
}

inside='
for place in /proc /sys /dev /tmp "$checkout"; do
    mkdir -p "$root$place" && mount --rbind "$place" "$root$place"
done
mkdir -p "$envs" "$checkout/.envs" && mount --bind "$envs" "$root$checkout/.envs"
mount --bind /etc/ssl "$root/etc/ssl"
cpu=/sys/devices/system/cpu # PyTorch ends where no processor tells its kind there; this one is a Neoverse N1
mount -t tmpfs cpu "$root$cpu" && cp $cpu/online $cpu/possible $cpu/present "$root$cpu"
mkdir -p "$root$cpu/cpu0/regs/identification"
echo 0x00000000410fd0c1 >"$root$cpu/cpu0/regs/identification/midr_el1"
touch "$root/etc/resolv.conf" && mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
exec chroot "$root" /usr/bin/env -C "$folder" PATH=/opt/uv/bin:/usr/local/bin:/usr/bin:/bin "$@"'

run() { (export root envs checkout folder && exec unshare --mount sh -euc "$inside" sh "$@"); }

uv() { # in the root, of the version and with the hashes that the tests use
    [ -x "$root/opt/uv/bin/uv" ] && return
    awk '/^uv==/ { on = 1; print; next } on && /^ / { print; next } { on = 0 }' envs/dev.txt >"$root/tmp-uv.txt"
    run python3 -m venv /opt/uv
    run /opt/uv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r /tmp-uv.txt >&2
}

python() { # python NAME
    local place wrapper=$checkout/build/arm64/$1/python
    make_root
    uv
    run sh "$checkout/scripts/launch.sh" ensure "$1" >&2
    place=$(run sh "$checkout/scripts/launch.sh" run "$1" -- -c 'import sys; print(sys.executable)' | tail -n 1)
    mkdir -p "${wrapper%/*}"
    # it finds this root whatever HOME a test gives it
    printf '#!/bin/sh\nSYNTHSEG_CI_CACHE="%s" exec "%s/.ci/arm64.sh" run "%s" "$@"\n' \
        "$cache" "$checkout" "$place" >"$wrapper"
    chmod +x "$wrapper"
    echo "$wrapper"
}

case ${1:-} in
root) make_root && echo "$root" ;;
python) python "$2" ;;
run) shift && make_root && run "$@" ;;
*) say "say root, python NAME or run WORDS" && exit 2 ;;
esac
