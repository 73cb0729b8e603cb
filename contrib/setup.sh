#!/bin/sh
# setup.sh VENV demo|test: makes the private virtual environment and puts in what is missing of the system's packages: for
# watchties itself and its demo, or also what its tests run against (servers and schedulers, none of which is started).
# apt-get is used where it may be (root, or sudo without a password); else it says in one line what to install.
set -eu
venv=$1 kind=$2
log=$(mktemp) && trap 'rm -f "$log"' EXIT

missing='' ours=''
need() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing="$missing $2"; }
need_file() { [ -e "$1" ] || missing="$missing $2"; }
need rsync rsync
need flock util-linux
need setsid util-linux
need ps procps
need find findutils
need ssh openssh-client
if [ "$kind" = test ]; then
    need sshd openssh-server
    need busybox busybox
    need php php-cli
    need faketime faketime # a clock that is wrong, for tests of `watchties check`
    need groff groff-base
    need mandoc mandoc
    need msmtp msmtp # a sendmail program
fi
if [ "$kind" = test ] && [ "$(id -u)" = 0 ]; then # hosts in network namespaces, for tests/e2e: nobody else can make them
    need ip iproute2
    need tc iproute2
    need iptables iptables
    need nsenter util-linux
    need sudo sudo # a login that may become another, as README has it
    need sshfs sshfs # a network file system, for tests of `watchties check`
    need useradd passwd
    need systemctl systemd # a systemd of a user's own in a host
    need dbus-daemon dbus
    need_file /usr/lib/systemd/user/dbus.socket dbus-user-session
    need mksh mksh # one more shell for agent.sh
    # schedulers, which run inside those hosts; nothing of theirs starts here, see below
    need slurmctld slurmctld
    need slurmd slurmd
    need sbatch slurm-client
    need munged munge
    need slurmdbd slurmdbd
    need mariadbd mariadb-server
    need sge_qmaster gridengine-master
    need sge_execd gridengine-exec
    need qsub gridengine-client
    ls /usr/lib/*/slurm-wlm/accounting_storage_mysql.so >/dev/null 2>&1 || missing="$missing slurm-wlm-mysql-plugin"
fi

# quiet_grid_engine: its package would begin a cluster of this machine, which fails where the machine's own name leads nowhere
quiet_grid_engine() {
    case $missing in
    *gridengine-master*) echo "gridengine-master shared/gridengineconfig boolean false" | debconf-set-selections ;;
    esac
}

python=
for p in python3 python3.14 python3.13 python3.12 python3.11; do
    if "$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$p; break; fi
done
[ -n "$python" ] || missing="$missing python3"
[ -z "$python" ] || "$python" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"

if [ -n "$missing" ]; then
    sudo=
    [ "$(id -u)" = 0 ] || sudo='sudo -n'
    if command -v apt-get >/dev/null 2>&1 && { [ -z "$sudo" ] || sudo -n true 2>/dev/null; }; then
        echo "installing with apt-get:$missing"
        # no daemon is to start because it was installed (invoke-rc.d(8))
        policy=/usr/sbin/policy-rc.d
        if [ -z "$sudo" ] && [ ! -e "$policy" ]; then
            trap 'rm -f "$log" "$ours"' EXIT
            ours=$policy
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
        fi
        # shellcheck disable=SC2086  # a list of words
        { quiet_grid_engine && $sudo apt-get update -qq &&
          $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
              -o DPkg::Lock::Timeout=120 $missing; } >"$log" 2>&1 || {
            tail -n 20 "$log" >&2
            echo "setup: apt-get could not install:$missing" >&2
            exit 1
        }
    else
        echo "setup: please install these packages first:$missing" >&2
        exit 1
    fi
    [ -n "$python" ] || python=python3
    [ -z "$ours" ] || rm -f "$ours"
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: Python 3.11 or newer is needed; $("$python" --version) was found" >&2
    exit 1
}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
what=.
[ "$kind" = demo ] || what='.[test]'
"$venv/bin/python" -m pip install -q --disable-pip-version-check -e "$what" >"$log" 2>&1 || {
    cat "$log" >&2
    echo "setup: pip could not install the Python packages" >&2
    exit 1
}

# an editable installation leaves the man pages out; `man` looks beside every bin of the PATH
for section in 1 5; do
    mkdir -p "$venv/share/man/man$section"
    ln -sf "$PWD"/contrib/man/pages/*."$section" "$venv/share/man/man$section/"
done
