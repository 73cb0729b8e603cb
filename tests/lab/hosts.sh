#!/bin/bash
# hosts.sh up|down|start HOST|stop HOST: real hosts on one machine, joined by a bridge. As root.
# Environment: LAB, the folder for everything; HOSTS, their names, the first one's address ends in .11;
# READABLE, more paths (one a line) that every user of the host v11 can read, at the same place, and nobody can write.
#
# A host is a process in namespaces of its own: network, name, processes, mounts, IPC. It has its own /home, /root,
# /tmp, /run, /dev/shm and, laid over the machine's, /etc and /var; the rest is the machine's, read-only. No namespace
# has a name anywhere: with its process it is gone, and labs in different folders know nothing of each other.
# What outlives a `stop` of a host is LAB/HOST/{home,root,tmp,www,ssh}; its /etc and /var begin anew.
set -eu
. "$(dirname "$(readlink -f "$0")")/common.sh"
HOSTS=${HOSTS:-vision v11 b01 elgato}
USERS=(webapp:2001 runcompties:2002) # and www-data, which every Debian has as 33

up() {
    down
    mkdir -p "$LAB"
    LAB=$(readlink -f "$LAB")
    export LAB
    [ -f "$LAB/id" ] || ssh-keygen -q -t ed25519 -N '' -C lab -f "$LAB/id"
    echo "127.0.0.1 localhost" >"$LAB/hosts"
    : >"$LAB/known_hosts"
    local host number=11
    for host in $HOSTS; do
        prepare "$host" "$SUBNET.$number"
        number=$((number + 1))
    done
    setsid unshare --net sleep infinity </dev/null >/dev/null 2>&1 &
    remember lan $!
    until_unshared lan net
    enter lan
    "${inside[@]}" ip link add br0 type bridge
    "${inside[@]}" ip link set br0 up
    for host in $HOSTS; do start "$host"; done
    for host in $HOSTS; do until_listening "$host"; done
}

down() {
    local file
    for file in "$LAB"/delay.pid "$LAB"/*.pid; do
        [ ! -e "$file" ] || end "$(basename "$file" .pid)"
    done
}

# prepare HOST ADDRESS: what a host keeps: homes with keys, its own host key, an address.
prepare() {
    local host=$1 address=$2 here=$LAB/$1 user id home
    mkdir -p "$here"/{home,root,tmp,www,ssh,seen}
    chmod 1777 "$here/tmp"
    chmod 700 "$here/root"
    for user in root:0:root www-data:33:www "${USERS[@]}"; do
        IFS=: read -r user id home <<<"$user"
        home=${home:-home/$user}
        mkdir -p "$here/$home/.ssh"
        cp "$LAB/id.pub" "$here/$home/.ssh/authorized_keys"
        chown -R "$id:$id" "$here/$home"
        chmod 700 "$here/$home/.ssh"
    done
    [ -f "$here/ssh/key" ] || ssh-keygen -q -t ed25519 -N '' -C "$host" -f "$here/ssh/key"
    echo "$address $host" | tee "$here/address" >>"$LAB/hosts"
    echo "02:00:00:00:00:${address##*.}" >"$here/card"
    echo "$host,$address $(cut -d' ' -f1,2 "$here/ssh/key.pub")" >>"$LAB/known_hosts"
    cat >"$here/ssh/sshd_config" <<C
HostKey /etc/ssh/key
PidFile none
UsePAM no
PasswordAuthentication no
UseDNS no
MaxStartups 50
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
C
}

# start HOST: switch it on. Its process 1 is a shell that reaps; the end of the process outside is the end of all in it.
start() {
    local host=$1 address
    [ -e "$LAB/$host.pid" ] && stop "$host"
    read -r address _ <"$LAB/$host/address"
    rm -f "$LAB/$host/log"
    setsid unshare --net --uts --ipc --mount --pid --fork --mount-proc --kill-child \
        bash "$(readlink -f "$0")" inside "$host" </dev/null >"$LAB/$host/log" 2>&1 &
    remember "$host" $!
    until_unshared "$host" mnt
    local pid
    pid=$(pid_of "$host")
    enter lan
    # A machine keeps its hardware address when it is switched on again, or its neighbours would look for the former one.
    "${inside[@]}" ip link add "p-$host" type veth peer name eth0 address "$(cat "$LAB/$host/card")" netns "$pid"
    "${inside[@]}" ip link set "p-$host" master br0 up
    nsenter "--net=/proc/$pid/ns/net" sh -eu -c "
        ip link set lo up; ip addr add $address/24 dev eth0; ip link set eth0 up"
    touch "$LAB/$host/connected"
}

# stop HOST: pull its plug.
stop() {
    end "$1"
    rm -f "$LAB/$1/connected"
    enter lan
    local i
    for i in $(seq 100); do # its end of the cable goes with its network, a moment later
        "${inside[@]}" ip link show "p-$1" >/dev/null 2>&1 || return 0
        [ "$i" -lt 50 ] || "${inside[@]}" ip link del "p-$1" 2>/dev/null || :
        sleep 0.02
    done
}

# until_unshared NAME KIND: a process has its new namespace.
until_unshared() {
    local pid i
    for i in $(seq 250); do
        pid=$(pid_of "$1") || break
        [ "$(readlink "/proc/$pid/ns/$2")" = "$(readlink "/proc/self/ns/$2")" ] || return 0
        sleep 0.02
    done
    echo "lab: $1 does not come up (try $i): $(cat "$LAB/$1/log" 2>/dev/null)" >&2
    exit 1
}

until_listening() {
    local i
    for i in $(seq 500); do
        grep -q '^Server listening on 0' "$LAB/$1/log" 2>/dev/null && return 0
        pid_of "$1" >/dev/null || break
        sleep 0.02
    done
    echo "lab: no sshd on $1 (try $i): $(cat "$LAB/$1/log")" >&2
    exit 1
}

# inside HOST: what process 1 of a host does. $LAB can be seen only until /tmp is the host's own.
inside() {
    local host=$1 here=$LAB/$1 name user
    trap : TERM INT HUP
    hostname "$host"
    mount -t tmpfs -o mode=755 tmpfs "$here/seen"
    cat /proc/sys/kernel/random/uuid >"$here/seen/boot_id" # a host that was switched off and on again has booted
    mount --bind "$here/seen/boot_id" /proc/sys/kernel/random/boot_id
    stage "$host"
    mkdir -p "$here"/seen/{etc,var}.{upper,work}
    for name in etc var; do
        mount -t overlay -o "lowerdir=/$name,upperdir=$here/seen/$name.upper,workdir=$here/seen/$name.work" overlay "/$name"
    done
    cp "$LAB/hosts" /etc/hosts
    echo "$host" >/etc/hostname
    usermod -s /bin/bash www-data
    for user in "${USERS[@]}"; do useradd -u "${user#*:}" -M -s /bin/bash "${user%:*}"; done
    # A password that nothing matches: with useradd's own `!` the login counts as locked, for keys too.
    for user in root www-data webapp runcompties; do usermod -p '*' "$user"; done
    mkdir -p /var/www
    mount --bind "$here/ssh" /etc/ssh
    mount --bind "$here/www" /var/www
    mount --bind "$here/home" /home
    mount --bind "$here/root" /root
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir /run/sshd /run/lock
    exec 3<"$here/seen"
    while [ ! -e "$here/connected" ]; do sleep 0.01; done
    mount --bind "$here/tmp" /tmp
    show
    exec 3<&-
    mount -o remount,bind,ro / 2>/dev/null || : # where it cannot be, nothing but a safeguard is missing
    cd /
    export LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
    unset LAB READABLE HOSTS
    # a connection that was cut without a word is noticed by TCP in a minute, not in two hours (tcp(7))
    for setting in time=30 intvl=10 probes=3; do
        echo "${setting#*=}" >"/proc/sys/net/ipv4/tcp_keepalive_${setting%=*}"
    done
    /usr/sbin/sshd -D -e &
    while :; do wait -n || sleep 1; done
}

# stage HOST: get hold of the paths that v11 has to show, before the host's own directories hide them.
stage() {
    : >"$LAB/$1/seen/paths"
    [ "$1" = v11 ] || return 0
    local path number=0
    printf '%s\n' "${READABLE:-}" | while IFS= read -r path; do
        [ -n "$path" ] || continue
        mkdir "$LAB/$1/seen/$number"
        mount --bind "$path" "$LAB/$1/seen/$number"
        mount -o remount,bind,ro "$LAB/$1/seen/$number"
        echo "$path" >>"$LAB/$1/seen/paths"
        number=$((number + 1))
    done
}

# show: put the staged paths where they belong. A directory on the way that others may not enter (/root, say) is covered.
show() {
    local path number=0
    while IFS= read -r path; do
        cover "$path"
        mkdir -p "$path"
        mount --bind "/proc/self/fd/3/$number" "$path"
        number=$((number + 1))
    done <"/proc/self/fd/3/paths"
}

cover() {
    local directory=$1 above=()
    while directory=$(dirname "$directory") && [ "$directory" != / ]; do above=("$directory" "${above[@]}"); done
    for directory in "${above[@]}"; do
        [ -d "$directory" ] || return 0
        case $(stat -c %A "$directory") in
            d????????[xt]) ;;
            *) mount -t tmpfs -o mode=755 tmpfs "$directory"; return 0 ;;
        esac
    done
}

case ${1:-} in
    up | down) "$1" ;;
    start) start "$2" && until_listening "$2" ;;
    stop | inside) "$1" "$2" ;;
    *) echo "usage: LAB=FOLDER hosts.sh up|down|start HOST|stop HOST" >&2; exit 2 ;;
esac
