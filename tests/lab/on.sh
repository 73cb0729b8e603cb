#!/bin/bash
# on.sh HOST COMMAND...: run a command inside a host, as root; on.sh -u USER HOST COMMAND...: as a user, in the user's home.
set -eu
. "$(dirname "$(readlink -f "$0")")/common.sh"
user=
[ "$1" != -u ] || { user=$2; shift 2; }
enter "$1"
shift
if [ -n "$user" ]; then
    # shellcheck disable=SC2016  # for the shell inside
    set -- setpriv --reuid "$user" --regid "$user" --init-groups --reset-env -- sh -c 'cd && exec "$@"' sh "$@"
else
    set -- env -C / HOME=/root "$@"
fi
exec "${inside[@]}" -- "$@"
