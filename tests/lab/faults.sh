#!/bin/bash
# faults.sh OP HOST [VALUE]: break the network of a host, or mend it.
set -eu
. "$(dirname "$(readlink -f "$0")")/common.sh"
host=${2:?a host}
enter lan
lan=("${inside[@]}")
input() { # a rule for what comes in at the host
    enter "$host"
    "${inside[@]}" iptables -w "$@"
}
sshd() { # a signal for the host's sshd, its sessions included: only that host's processes can be seen there
    enter "$host"
    # shellcheck disable=SC2016  # for the shell inside
    "${inside[@]}" sh -c 'pids=$(pgrep -x sshd) || exit
        for pid in $pids; do # a session may end by itself meanwhile
            kill -"$1" "$pid" 2>/dev/null || [ ! -e "/proc/$pid" ] || exit
        done' sh "$1"
}
start_sshd() { # unless it runs
    enter "$host"
    "${inside[@]}" sh -c 'pgrep -x sshd >/dev/null || exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 /usr/sbin/sshd'
}
move() { # to another address, which all hosts learn by their /etc/hosts
    local other
    enter "$host"
    # shellcheck disable=SC2016  # for the shell inside
    "${inside[@]}" sh -c 'ip addr flush dev eth0 && ip addr add "$1/24" dev eth0' sh "$1"
    echo "$1 $host" >"$LAB/$host/address"
    sed -i "s/^[0-9.]* $host\$/$1 $host/" "$LAB/hosts"
    while read -r _ other; do
        if [ "$other" != localhost ] && pid_of "$other" >/dev/null; then
            enter "$other"
            "${inside[@]}" sh -c 'cat >/etc/hosts' <"$LAB/hosts"
        fi
    done <"$LAB/hosts"
}
plug_in() { # the kernel takes up to a second to see that the cable is in
    "${lan[@]}" ip link set "p-$host" up
    for _ in $(seq 150); do
        case $("${lan[@]}" ip -o link show "p-$host") in *"state UP"*) return ;; esac
        sleep 0.02
    done
}
case $1 in
    down) "${lan[@]}" ip link set "p-$host" down ;;                             # the cable is pulled: nobody is told
    up) plug_in ;;
    drop) input -A INPUT -j DROP ;;                                             # a black hole, open connections too
    drop22) input -A INPUT -p tcp --dport 22 --syn -j DROP ;;                   # only new connections hang
    reject) input -A INPUT -p tcp --dport 22 -j REJECT --reject-with tcp-reset ;; # refused at once
    loss) input -A INPUT -m statistic --mode random --probability "${3:?a part of 1}" -j DROP ;;
    rate) "${lan[@]}" tc qdisc replace dev "p-$host" root tbf rate "${3:?kbit/s}kbit" burst 4kb latency 400ms ;; # towards the host
    kill) sshd KILL ;; # refused at once, every session cut
    move) move "${3:?an address}" ;;
    freeze) sshd STOP ;; # connections are accepted, and hang
    thaw) sshd CONT ;;
    clear)
        input -F INPUT
        "${lan[@]}" tc qdisc del dev "p-$host" root 2>/dev/null || :
        plug_in
        start_sshd
        sshd CONT
        ;;
    *) echo "usage: LAB=FOLDER faults.sh down|up|drop|drop22|reject|loss|rate|kill|move|freeze|thaw|clear HOST [VALUE]" >&2; exit 2 ;;
esac
