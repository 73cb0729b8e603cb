#!/bin/bash
# sge.sh: a Grid Engine on one host of the lab, run as root inside it. SLOTS: jobs at once, default 8.
set -eu
here=$(hostname -s)
export SGE_ROOT=/var/lib/gridengine SGE_CELL=default SGE_MASTER_PIDFILE=/run/gridengine/qmaster.pid SGE_EXECD_PIDFILE=/run/gridengine/execd.pid
mkdir -p /run/gridengine
chown sgeadmin: /run/gridengine
admin() { setpriv --reuid sgeadmin --regid sgeadmin --init-groups "$@"; } # only the administrator may
admin /usr/share/gridengine/scripts/init_cluster $SGE_ROOT default /var/spool/gridengine/spooldb sgeadmin >/dev/null # does nothing where there is one
echo "$here" | admin tee $SGE_ROOT/default/common/act_qmaster >/dev/null # it has to be the administrator's
given=$(mktemp -d)
chmod 755 "$given"
until_ok() { # a tenth of a second apart
    local times=200
    until "$@" >/dev/null 2>&1; do
        times=$((times - 1))
        [ "$times" -gt 0 ] || { echo "sge.sh: in vain: $*" >&2; exit 1; }
        sleep 0.1
    done
}
/usr/sbin/sge_qmaster
until_ok admin qconf -sh
admin qconf -ah "$here" >/dev/null 2>&1 || :
admin qconf -as "$here"
printf 'group_name @allhosts\nhostlist %s\n' "$here" >"$given/group"
admin qconf -Ahgrp "$given/group"
/usr/sbin/sge_execd
none() { printf '%s NONE\n' "$@"; }
infinite() { printf '%s INFINITY\n' "$@"; }
{
    cat <<C
qname main.q
hostlist @allhosts
seq_no 0
load_thresholds NONE
suspend_thresholds NONE
nsuspend 1
suspend_interval 00:05:00
priority 0
min_cpu_interval 00:05:00
processors UNDEFINED
qtype BATCH INTERACTIVE
rerun FALSE
slots ${SLOTS:-8}
tmpdir /tmp
shell /bin/sh
shell_start_mode unix_behavior
notify 00:00:60
initial_state default
C
    none ckpt_list pe_list prolog epilog starter_method suspend_method resume_method terminate_method owner_list user_lists \
        xuser_lists subordinate_list complex_values projects xprojects calendar
    infinite {s,h}_{rt,cpu,fsize,data,stack,core,rss,vmem}
} >"$given/queue"
admin qconf -Aq "$given/queue"
admin qconf -ssconf | sed 's/^schedule_interval.*/schedule_interval 0:0:1/; s/^flush_submit_sec.*/flush_submit_sec 1/
    s/^flush_finish_sec.*/flush_finish_sec 1/' >"$given/scheduler"
admin qconf -Msconf "$given/scheduler"
admin qconf -sconf | sed 's/^reporting_params.*/reporting_params accounting=true reporting=false flush_time=00:00:01 accounting_flush_time=00:00:01/' >"$given/global"
admin qconf -Mconf "$given/global" >/dev/null 2>&1 || :
free() { qstat -f | grep -q "main.q@$here .* lx-amd64 *$"; }
until_ok free
