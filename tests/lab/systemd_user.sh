#!/bin/bash
# systemd_user.sh USER: run inside a host, as root: a real `systemd --user` for USER, with its bus, where systemd is not process 1.
# It ends with the host. What it says is in /tmp/systemd-user.log of the host.
set -eu
user=$1
id=$(id -u "$user")
run=/run/user/$id

# The manager wants a cgroup hierarchy (v2) of its own to write to. The machine's may be another version, or somebody
# else's: this mount is seen by this host alone. Laid over what is there, as systemd looks for it at this very place.
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# Names of cgroups are the machine's: each lab has one of its own, and takes away what labs that are gone have left.
for left in /sys/fs/cgroup/watchties-lab-*; do
    if [ -n "$(find "$left" -maxdepth 0 -mmin +2 2>/dev/null)" ] && grep -q '^populated 0' "$left/cgroup.events"; then
        find "$left" -depth -type d -exec rmdir {} + 2>/dev/null || :
    fi
done
cgroup=$(mktemp -d /sys/fs/cgroup/watchties-lab-XXXXXX)
chmod 755 "$cgroup"
chown -R "$user:" "$cgroup"
mkdir -p /run/systemd/system "$run" # /run/systemd/system: by this sd_booted(3) knows systemd, and systemctl(1) goes by that
chown "$user:" "$run"
chmod 700 "$run"

as_user() {
    setpriv --reuid "$user" --regid "$user" --init-groups --reset-env -- env XDG_RUNTIME_DIR="$run" \
        DBUS_SESSION_BUS_ADDRESS="unix:path=$run/bus" "$@"
}

(
    echo "$BASHPID" >"$cgroup/cgroup.procs"
    as_user setsid /lib/systemd/systemd --user --log-target=console </dev/null >/tmp/systemd-user.log 2>&1 &
)
for i in $(seq 500); do
    if [ -S "$run/bus" ] && as_user systemctl --user is-active -q default.target 2>/dev/null; then exit 0; fi
    sleep 0.05
done
echo "lab: no systemd --user for $user (try $i): $(cat /tmp/systemd-user.log)" >&2
exit 1
