#!/bin/bash
# slurm.sh up NODE... | controller | stop | node: a Slurm on hosts of the lab, run as root inside each of them; the first NODE is the controller's.
# ACCOUNTING=1: with slurmdbd and a MariaDB beside the controller, so that sacct works.
# Jobs are looked at every second and killed beyond their memory; a node says it has eight processors, so that work spreads.
set -eu
here=$(hostname -s) D=/var/tmp/slurm
conf() {
    local accounting=none
    [ -z "${ACCOUNTING:-}" ] || accounting=slurmdbd
    cat <<C
ClusterName=lab
SlurmctldHost=$1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
DefMemPerCPU=100
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/$accounting
${ACCOUNTING:+AccountingStorageHost=$1}
JobCompType=jobcomp/none
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd.pid
SlurmctldLogFile=$D/slurmctld.log
SlurmdLogFile=$D/slurmd.log
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=50000,default_queue_depth=500
MinJobAge=${MIN_JOB_AGE:-300}
KillWait=2
InactiveLimit=0
SlurmdTimeout=${SLURMD_TIMEOUT:-300}
NodeName=$(IFS=,; echo "$*") CPUs=8 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
C
}
munge() {
    mkdir -p /run/munge "$D"/{state,spool}
    chown munge: /run/munge
    chmod 755 /run/munge "$D"
    pgrep -x munged >/dev/null || runuser -u munge -- /usr/sbin/munged --pid-file=/run/munge/pid \
        --socket=/run/munge/munge.socket.2 --log-file=/run/munge/log --seed-file=/run/munge/seed
}
database() {
    mkdir -p "$D/mysql" /run/mysqld
    chown mysql: "$D/mysql" /run/mysqld
    mysql_install_db --user=mysql "--datadir=$D/mysql" --skip-test-db >/dev/null 2>&1
    setsid /usr/sbin/mariadbd --no-defaults --user=mysql "--datadir=$D/mysql" --socket=/run/mysqld/mysqld.sock --skip-networking \
        "--pid-file=$D/mysql/pid" --innodb-buffer-pool-size=16M --performance-schema=off </dev/null >"$D/mariadb.log" 2>&1 &
    until_ok 200 mariadb -S /run/mysqld/mysqld.sock -e 'create database if not exists slurm_acct_db'
    printf '%s\n' AuthType=auth/munge "DbdHost=$here" SlurmUser=root StorageType=accounting_storage/mysql StorageHost=localhost \
        StorageUser=root StorageLoc=slurm_acct_db "LogFile=$D/slurmdbd.log" "PidFile=$D/slurmdbd.pid" >/etc/slurm/slurmdbd.conf
    chmod 600 /etc/slurm/slurmdbd.conf
    /usr/sbin/slurmdbd
    until_ok 200 bash -c 'exec 3<>/dev/tcp/127.0.0.1/6819'
}
until_ok() { # until_ok TIMES COMMAND...: a tenth of a second apart
    local times=$1
    shift
    until "$@" >/dev/null 2>&1; do
        times=$((times - 1))
        [ "$times" -gt 0 ] || { echo "slurm.sh: in vain: $*" >&2; cat "$D"/*.log >&2; exit 1; }
        sleep 0.1
    done
}
idle() { [ "$(timeout 2 sinfo -h -N -o %t | sort -u)" = idle ]; } # with no controller each call would take 9 s
controller() { # from a state that is kept: as after a restart
    /usr/sbin/slurmctld
}
node() {
    /usr/sbin/slurmd -N "$here"
}
up() {
    mkdir -p /etc/slurm
    munge
    conf "$@" >/etc/slurm/slurm.conf
    echo CgroupPlugin=cgroup/v1 >/etc/slurm/cgroup.conf # without it slurmd wants a cgroup file system
    if [ "$here" = "$1" ]; then
        [ -z "${ACCOUNTING:-}" ] || database
        controller
    fi
    node
    [ "$here" != "${!#}" ] || until_ok 200 idle
}
stop() { # the controller, as an administrator does: killed outright it would forget the jobs of the last seconds
    local pid
    pid=$(cat "$D/slurmctld.pid")
    kill "$pid"
    while [ -e "/proc/$pid" ]; do sleep 0.02; done
}
case ${1:-} in
    up | controller | stop | node) "$@" ;;
    *) echo "usage: slurm.sh up NODE... | controller | stop | node" >&2; exit 2 ;;
esac
