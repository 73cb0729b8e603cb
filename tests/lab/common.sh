# shellcheck shell=bash
# What the scripts of the lab share: which processes belong to it, and how to get into them.
# A process is known by pid and start time, so that a pid which the kernel has given away again is never signalled.

LAB=${LAB:?say in LAB which folder the lab lies in, or shall lie in}
# shellcheck disable=SC2034  # for hosts.sh
SUBNET=10.77.0 # every lab has a network of its own, so all of them use the same addresses

# started PID: when the process was started (field 22 of /proc/PID/stat; the name before may hold blanks); nothing if it is gone.
started() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    # shellcheck disable=SC2086  # the fields are wanted one by one
    set -- ${stat##*) }
    echo "${20}"
}

remember() { echo "$2 $(started "$2")" >"$LAB/$1.pid"; } # remember NAME PID

# pid_of NAME: the pid of a process of the lab; fails if it does not run.
pid_of() {
    local pid began
    read -r pid began 2>/dev/null <"$LAB/$1.pid" || return 1
    [ "$(started "$pid")" = "$began" ] && echo "$pid"
}

# end NAME: end a process and wait until it is gone.
end() {
    local pid
    if pid=$(pid_of "$1"); then
        kill -KILL "$pid" 2>/dev/null || :
        while pid_of "$1" >/dev/null && [ "$(state "$pid")" != Z ]; do sleep 0.02; done
    fi
    rm -f "$LAB/$1.pid"
}

state() { sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null; }

# enter NAME: put the words that run a command inside a host (or, for `lan`, in the network between them) into the array `inside`.
enter() {
    local pid
    pid=$(pid_of "$1") || { echo "lab: $1 is not up in $LAB" >&2; exit 1; }
    inside=(nsenter "--net=/proc/$pid/ns/net")
    [ "$1" = lan ] || inside+=("--uts=/proc/$pid/ns/uts" "--ipc=/proc/$pid/ns/ipc" "--mount=/proc/$pid/ns/mnt" \
        "--pid=/proc/$pid/ns/pid_for_children")
}
