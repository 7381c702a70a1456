#!/bin/sh
# A real SLURM cluster of one node, this machine, for the tests of profiles/slurm: Debian or Ubuntu, as root.
# Installs munge and slurm-wlm where missing, writes /etc/slurm/slurm.conf, starts munged, slurmctld and slurmd, and
# returns once the node takes jobs. A second call finds it running. `.ci/slurm.sh stop` ends what was started here.
#
# No accounting database, no cgroups (a container has none of its own): memory is scheduled, not enforced.
set -eu

conf=/etc/slurm/slurm.conf
mark="# Written by .ci/slurm.sh of synthseg-native; made anew at every start."
logs=/var/log/slurm-ci
state=/var/lib/slurm-ci
cpus=2 # more than the machine may have: enough to see two jobs at once

say() { echo "slurm: $*" >&2; }

fail() {
    say "$*"
    exit 1
}

daemon_failed() {
    say "$*"
    for log in "$logs"/*.log; do
        [ ! -s "$log" ] || { say "the end of $log:" && tail -n 20 "$log" >&2; }
    done
    exit 1
}

takes_jobs() { sinfo --noheader --format=%T 2>/dev/null | grep -Eqx 'idle|mixed|allocated|completing'; }
ours() { [ ! -e "$conf" ] || head -n 1 "$conf" | grep -qxF "$mark"; }

# wait_for SECONDS COMMAND...: until the command succeeds
wait_for() {
    tries=$(($1 * 5)) && shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        sleep 0.2
    done
}

# running NAME: the process of our daemon, by its pid file
running() { [ -s "$state/$1.pid" ] && kill -0 "$(cat "$state/$1.pid")" 2>/dev/null; }

stop() {
    ours || fail "$conf is not ours: nothing stopped"
    for name in slurmd slurmctld; do
        ! running $name || kill "$(cat "$state/$name.pid")"
        wait_for 20 sh -c "! kill -0 \"\$(cat $state/$name.pid)\"" || daemon_failed "$name does not end"
    done
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    command -v apt-get >/dev/null || fail "no munge and slurm-wlm here, and no apt-get to install them"
    apt-get update -qq >&2 || fail "apt-get update failed"
    apt-get install -y -qq --no-install-recommends munge slurm-wlm >&2 || fail "apt-get install failed"
}

start_munge() {
    ! munge --no-input >/dev/null 2>&1 || return 0
    install -d -m 0755 -o munge -g munge /run/munge
    install -d -m 0700 -o munge -g munge /etc/munge /var/lib/munge /var/log/munge
    if [ ! -s /etc/munge/munge.key ]; then
        (umask 077 && head -c 1024 /dev/urandom >/etc/munge/munge.key)
        chown munge:munge /etc/munge/munge.key
    fi
    runuser -u munge -- munged || fail "munged does not start: see /var/log/munge/munged.log"
    wait_for 20 munge --no-input || fail "munged does not answer: see /var/log/munge/munged.log"
}

write_conf() {
    host=$(uname -n | cut -d. -f1)
    memory=$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024))
    mkdir -p "${conf%/*}" "$logs" "$state/ctld" "$state/d"
    cat >"$conf" <<CONF
$mark
ClusterName=ci
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=300
KillWait=5
SchedulerParameters=batch_sched_delay=0
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$logs/slurmctld.log
SlurmdLogFile=$logs/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=ci Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    # From 23.11 slurmd asks for cgroups even where no plugin uses them, unless told not to.
    if printf '23.11\n%s\n' "$(slurmd -V | cut -d' ' -f2)" | sort -VC; then
        echo "CgroupPlugin=disabled" >"${conf%/*}/cgroup.conf"
    fi
}

if [ "${1:-start}" = stop ]; then
    stop
    exit
fi

if takes_jobs; then
    say "already running"
    exit
fi
[ "$(id -u)" = 0 ] || fail "needs root: sudo $0"
ours || fail "$conf is there and not ours: this machine has a SLURM configuration of its own"
for program in munged slurmctld slurmd sbatch; do
    command -v $program >/dev/null || { install_packages && break; }
done
! running slurmd || stop
! running slurmctld || stop
rm -rf "$logs" "$state"
start_munge
write_conf
slurmctld || daemon_failed "slurmctld does not start"
slurmd || daemon_failed "slurmd does not start"
wait_for 60 takes_jobs || daemon_failed "no node takes jobs: $(sinfo --noheader --format='%n %T %E' 2>&1)"
say "$(sinfo --noheader --format='%n: %T, %c CPUs, %m MB')"
