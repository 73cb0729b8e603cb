#!/bin/sh
# agent.sh: what watchties does on a far host, in POSIX sh (dash, bash, busybox sh, mksh).
#
# Knows: the marker files of a job, the attempt's directory on a compute host, processes and sessions of this host.
# Must not know: any scheduler (it is given the command lines), any configuration, what is to be done next.
#
#   sh scripts/agent.sh COMMAND DATA [ARGS]     DATA is the directory of the jobs, relative to where it is called
#
#   publish DATA            JOB STATE ATTEMPT TOKEN ACCEPTED [k=v ...]  -> JOB ok|older|missing|error PENDING_NS CANCEL_NS [detail]
#   identify DATA           JOB                                         -> JOB PENDING_NS CANCEL_NS LEFTOVER_NS
#   list DATA DEPTH MARKER...                                           -> MARKER JOB NS TOKEN
#   claim DATA RUN          JOB ATTEMPT TOKEN [EVIDENCE ...]            -> JOB new|held|unknown|begun|done|cancelled|error [detail]
#   submit DATA RUN [SETUP] JOB ATTEMPT TOKEN COMMANDLINE               -> JOB replied|refused|error [detail]
#   adopt DATA RUN          JOB ATTEMPT TOKEN TEXT                      -> JOB ok|error [detail]
#   cancel DATA             JOB ATTEMPT TOKEN COMMANDLINE|-             -> JOB none|exited|ended|running|error [detail]
#   status DATA [QUERY]     JOB ATTEMPT TOKEN                           -> JOB exit|begun|cancelled|submitted|intent|claimed|none|error [k=v ...]
#   wrapper JOBDIR ATTEMPT TOKEN [ID]                                   what a scheduler starts
#   version
#
# Lines come on standard input, one a job, and are answered in their order; fields are separated by tabs, "-" is none.
# A line that begins with a tab continues the one before: x EXITCODE, o LINE of standard output, e LINE of standard error.
# Exit code: 0 every line was answered, 2 usage, 75 try again later (the lock is held), anything else: broken.
#
# An attempt lives in JOB/.watchties/ATTEMPT.TOKEN/; which of these files stand there is its state:
#   claim.RUN    claimed by that run; another run's claim renames it, so that the first one's submit finds nothing
#   intent.RUN   the claim, renamed by submit before the scheduler hears anything
#   reply        what the scheduler said, whole: the submission is known to have happened (or to have failed)
#   begun        ONE name for the wrapper's start and for the tombstone of cancel (state=cancelled)
#   killed       cancel is stopping it     exit   the wrapper's last word, durable before the marker DONE or FAILED
# An earlier attempt's markers and outputs are moved to JOB/.watchties/before.ATTEMPT/.
#
# Each rule of the protocol is one function with the rule's name: far_lock, restore_hidden, back_over_accepted,
# state_rank, fenced, begun_is_one_name, cancel_waits. Tests take them out one by one.

AGENT_VERSION=1

TAB=$(printf '\t')
NL='
'
USUAL_IFS=" $TAB$NL"
IFS=$TAB # fields; "$*" joins with it
set -f   # a job may be called *
set -u

# ---- small tools ----

# broken CODE TEXT: end now, having said why
broken() {
    printf 'agent: %s\n' "$2" >&2
    exit "$1"
}

usage() {
    broken 2 "usage: agent.sh publish|identify|list|claim|submit|adopt|cancel|status|wrapper|version DATA [ARGS]; see the file's head"
}

# close_inherited ARGS: let go of every descriptor above 2 that the caller left open. A day-long job would otherwise hold
# the caller's locks. dash and mksh can name only those up to 9: for more, another program closes them and calls us again.
close_inherited() {
    exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-
    if [ -n "${WT_CLOSED-}" ]; then
        unset WT_CLOSED
        return
    fi
    high=
    set +f
    for f in /proc/$$/fd/[1-9][0-9]*; do
        is_inherited "${f##*/}" && high="$high ${f##*/}>&-"
    done
    set -f
    [ -n "$high" ] || return 0
    # shellcheck disable=SC2086
    if (IFS=' ' && eval "exec $high") 2>/dev/null; then
        eval "exec $high"
        return
    fi
    export WT_CLOSED=1
    for f in "bash" "busybox${TAB}sh"; do
        # shellcheck disable=SC2086 # two words
        ! command -v ${f%%"$TAB"*} >/dev/null 2>&1 || exec $f -c "exec $high"'; exec sh "$0" "$@"' "$0" "$@"
    done
    ! command -v python3 >/dev/null 2>&1 || exec python3 -c 'import os, sys
os.closerange(3, 65536)
os.execvp("sh", ["sh"] + sys.argv[1:])' "$0" "$@"
    unset WT_CLOSED
    printf 'agent: cannot close inherited descriptors (%s): no bash, busybox or python3 here\n' "$high" >&2
}

# is_inherited FD: it is open in this shell and not marked close-on-exec (02000000), as the shell's own are
is_inherited() {
    [ -e "/proc/$$/fdinfo/$1" ] || return 1
    while IFS=": $TAB" read -r key value; do
        case $key$value in
        flags*[2367]??????) return 1 ;;
        flags*) return 0 ;;
        esac
    done <"/proc/$$/fdinfo/$1"
    return 1
} 2>/dev/null

# durable: what was written in DATA until now outlasts a power failure; one call for a whole batch
durable() {
    sync -f "$data" 2>/dev/null && return
    case $(sync --help 2>&1) in
    *-f*) broken 71 "cannot sync $data (disk full or broken?)" ;;
    esac
    sync
}

# far_lock: publications (and claims) in DATA wait for one another. The lock is held by this process and by what it starts:
# an orphan of an earlier run cannot undo a later one.
far_lock() {
    (: >>"$data/.watchties.lock") 2>/dev/null || broken 73 "cannot write $data/.watchties.lock"
    exec 9>>"$data/.watchties.lock"
    flock -n 0 <&9 2>/dev/null && return
    case $(flock --help 2>&1) in
    *-w*) flock -w 60 0 <&9 && return ;;
    *) wait_for_lock && return ;; # busybox
    esac
    [ $? -eq 1 ] || broken 71 "flock does not work on $data"
    broken 75 "$data is locked by another one for more than 60 seconds"
}

wait_for_lock() {
    tries=0
    until flock -n 0 <&9; do
        tries=$((tries + 1))
        [ "$tries" -lt 60 ] || return 1
        sleep 1
    done
}

# is_word TEXT, is_number TEXT: what may become part of a file name of ours, or be compared
is_word() {
    case $1 in '' | [-.]* | *[!A-Za-z0-9._:@+-]*) return 1 ;; esac
}

is_number() {
    case $1 in '' | *[!0-9]* | ??????????*) return 1 ;; esac
}

# use_data DIR: set $data, absolute
use_data() {
    case $1 in
    /*) data=$1 ;;
    *) data=$PWD/$1 ;;
    esac
    [ -d "$data" ] || broken 66 "there is no directory $data"
}

# use_run RUN: set $run
use_run() {
    is_word "$1" || broken 2 "RUN must be one plain word"
    run=$1
}

# job_directory JOB: set $dir; false, with $why, if it leads out of DATA by its name or over a symbolic link
job_directory() {
    dir=$data/$1 why=
    case /$1/ in
    *//* | */.*) why="not a name of a job" && return 1 ;;
    esac
    part=$data rest=$1/
    while [ -n "$rest" ]; do
        part=$part/${rest%%/*} rest=${rest#*/}
        [ ! -L "$part" ] || { why="$part is a symbolic link" && return 1; }
    done
}

# attempt_directory JOB ATTEMPT TOKEN: set $dir, $attempt, $token and $a, the attempt's directory; false, with $why
attempt_directory() {
    job_directory "${1-}" || return 1
    attempt=${2-} token=${3-}
    is_number "$attempt" && is_word "$token" || { why="bad attempt or token" && return 1; }
    a=$dir/.watchties/$attempt.$token
    [ ! -L "$dir/.watchties" ] && [ ! -L "$a" ] || { why="$dir/.watchties is a symbolic link" && return 1; }
}

# clear_name DIR NAME: make sure that a rename to DIR/NAME cannot end up inside a directory of that name
clear_name() {
    [ ! -d "$1/$2" ] || move_aside "$1" "$2"
}

# move_aside DIR NAME: to .watchties.junk.NAME.N, over nothing
move_aside() {
    junk=0
    while [ -e "$1/.watchties.junk.$2.$junk" ] || [ -L "$1/.watchties.junk.$2.$junk" ]; do
        junk=$((junk + 1))
    done
    mv -f "$1/$2" "$1/.watchties.junk.$2.$junk"
}

# write_new FILE TEXT: make FILE anew; never through a link that somebody has laid there
write_new() {
    if [ -e "$1" ] || [ -L "$1" ]; then
        rm -rf "$1"
    fi
    set -C
    { printf '%s' "$2" >"$1"; } 2>/dev/null
    written=$?
    set +C
    return $written
}

# read_fields FILE: set $text (its k=v lines joined by tabs), $content (as it is) and the fields we know, f_KEY
read_fields() {
    text='' content='' lines=0
    f_state='' f_attempt='' f_token='' f_id='' f_host='' f_pid='' f_group='' f_session='' f_leader='' f_boot='' f_killed=''
    [ -f "$1" ] && [ ! -L "$1" ] || return 1
    while [ "$lines" -lt 60 ] && IFS= read -r line; do
        content=$content$line$NL lines=$((lines + 1))
        case $line in
        *"$TAB"*) ;;
        state=* | attempt=* | token=* | id=* | host=* | pid=* | group=* | session=* | leader=* | boot=* | killed=*)
            eval "f_${line%%=*}=\${line#*=}"
            text=$text${text:+$TAB}$line
            ;;
        [a-z]*=*) text=$text${text:+$TAB}$line ;;
        esac
    done 2>/dev/null <"$1"
}

# newer_than ATTEMPT STATE TOKEN: a state marker in $dir is newer than that
newer_than() {
    for name in SUBMITTED DONE FAILED; do
        read_fields "$dir/$name" || continue
        is_number "$f_attempt" && [ "$f_attempt" -gt "$1" ] && return
        state_rank "$name" "$f_token" "$2" "$3" && return
    done
    return 1
}

# state_rank THERE ITS_TOKEN STATE TOKEN: with equal tokens DONE and FAILED are newer than SUBMITTED
state_rank() {
    [ "$2" = "$4" ] && [ "$3" = SUBMITTED ] && [ "$1" != SUBMITTED ]
}

# ---- batches: lines are read in chunks, and every step is done for a whole chunk before the next ----

# read_chunk MAX: read up to MAX lines into line_1 ... line_$n; false at the end
read_chunk() {
    n=0
    while [ "$n" -lt "$1" ] && { IFS= read -r line || [ -n "$line" ]; }; do
        n=$((n + 1))
        eval "line_$n=\$line answer_$n= detail_$n= dir_$n="
    done
    garbage=''
    [ "$n" -gt 0 ]
}

# each FUNCTION: call it with the fields of every line that has no answer yet; $i is the line's number
each() {
    i=0
    while [ "$i" -lt "$n" ]; do
        i=$((i + 1))
        eval "line=\$line_$i answer=\$answer_$i"
        # shellcheck disable=SC2086 # split at the tabs
        [ -n "$answer" ] || "$1" $line
    done
}

# every FUNCTION: the same for all lines, answered or not
every() {
    i=0
    while [ "$i" -lt "$n" ]; do
        i=$((i + 1))
        eval "line=\$line_$i"
        # shellcheck disable=SC2086
        "$1" $line
    done
}

# answer WORD [DETAIL]: of line $i
answer() {
    # shellcheck disable=SC2034 # in eval
    reason=${2-}
    eval "answer_$i=\$1 detail_$i=\$reason"
}

# tell JOB: print the answer of line $i
tell() {
    eval "word=\$answer_$i detail=\$detail_$i"
    printf '%s\n' "${1:--}$TAB$word${detail:+$TAB$detail}"
}

# remove_garbage: everything in $garbage in one call
remove_garbage() {
    [ -n "$garbage" ] || return 0
    IFS=$NL
    # shellcheck disable=SC2086
    rm -f $garbage
    IFS=$TAB garbage=''
}

# ---- requests: PENDING and CANCEL, known by their mtime in nanoseconds ----

# use_find: set $FIND to a GNU find (an applet that shadows it knows no nanoseconds)
use_find() {
    for FIND in find /usr/bin/find /bin/find; do
        [ "$("$FIND" / -maxdepth 0 -printf x 2>/dev/null)" = x ] && return
    done
    broken 69 "GNU find is needed on this host (findutils)"
}

# look_up: add the requests that stand at line $i, openly or under their hidden names, to $paths
look_up() {
    eval "dir=\$dir_$i PENDING_$i=- CANCEL_$i=- hidden_PENDING_$i=- hidden_CANCEL_$i=-"
    [ -n "$dir" ] || return 0
    for name in PENDING CANCEL .watchties.taken.PENDING .watchties.taken.CANCEL; do
        [ ! -f "$dir/$name" ] || paths=$paths$dir/$name$NL
    done
}

# identities: set PENDING_$i, CANCEL_$i, hidden_PENDING_$i, hidden_CANCEL_$i of all lines; one find for all
identities() {
    paths=''
    every look_up
    [ -n "$paths" ] || return 0
    IFS=$NL
    # shellcheck disable=SC2046,SC2086
    set -- $("$FIND" $paths -maxdepth 0 -type f -printf '%T@\t%p\n' 2>/dev/null)
    IFS=$TAB
    i=1
    for found; do # in the order of the lines
        path=${found#*"$TAB"}
        while eval "[ \"\$dir_$i\" != \"\${path%/*}\" ]"; do
            i=$((i + 1))
            [ "$i" -le "$n" ] || return 0
        done
        nanoseconds "${found%%"$TAB"*}"
        case ${path##*/} in
        .watchties.taken.*) eval "hidden_${path##*.}_$i=\$ns" ;;
        *) eval "${path##*/}_$i=\$ns" ;;
        esac
    done
}

# nanoseconds SECONDS.FRACTION: set $ns; GNU find prints ten decimals, of which nine are true
nanoseconds() {
    ns=${1#*.}000000000
    ns=${1%%.*}${ns%"${ns#?????????}"}
    while :; do
        case $ns in
        0?*) ns=${ns#0} ;;
        *) return ;;
        esac
    done
}

# accepted NS LIST: it is one of a comma separated list
accepted() {
    case ,$2, in *",$1,"*) ;; *) return 1 ;; esac
}

# put_back NAME ACCEPTED: what was taken off as NAME goes if it is accepted, else it stands again
put_back() {
    eval "standing=\$$1_$i hidden=\$hidden_$1_$i"
    [ "$hidden" != - ] || return 0
    if accepted "$hidden" "$2" || { [ "$standing" != - ] && ! back_over_accepted "$standing" "$2"; }; then
        garbage=$garbage$dir/.watchties.taken.$1$NL
    else
        clear_name "$dir" "$1"
        mv -f "$dir/.watchties.taken.$1" "$dir/$1" && eval "$1_$i=\$hidden"
    fi
    eval "hidden_$1_$i=-"
}

# back_over_accepted STANDING ACCEPTED: a request is put back even over one that stands there, if that one is accepted
back_over_accepted() {
    accepted "$1" "$2"
}

# restore_hidden ACCEPTED: a request left under its hidden name, by a publication that was cut off, is put back before all else
restore_hidden() {
    put_back PENDING "$1"
    put_back CANCEL "$1"
}

do_identify() {
    use_data "$1"
    use_find
    while read_chunk 200; do
        each identify_check
        identities
        every identify_tell
    done
}

identify_check() {
    job_directory "${1-}" || return 0
    eval "dir_$i=\$dir"
}

identify_tell() {
    eval "printf '%s\\n' \"\${1:--}$TAB\$PENDING_$i$TAB\$CANCEL_$i$TAB\$hidden_PENDING_$i\""
}

# ---- list ----

do_list() {
    use_data "$1"
    use_find
    is_number "$2" && [ $# -ge 3 ] || usage
    depth=$(($2 + 1))
    shift 2
    names=
    for name; do
        case $name in
        PENDING | CANCEL) names="$names${TAB}-o${TAB}-name${TAB}$name${TAB}-o${TAB}-name${TAB}.watchties.taken.$name" ;;
        SUBMITTED | DONE | FAILED) names="$names${TAB}-o${TAB}-name${TAB}$name" ;;
        *) usage ;;
        esac
    done
    # shellcheck disable=SC2086
    LC_ALL=C "$FIND" -H "$data" -mindepth 1 -maxdepth "$depth" -type d -name '.*' -prune \
        -o -type f \( -false $names \) ! -path '*[[:cntrl:]]*' -printf '%d\t%f\t%T@\t%s\t%P\n' |
        LC_ALL=C WT_DATA=$data WT_DEPTH=$depth awk '
        function token(path, size,    line, found, lines) {
            found = "-"
            while (size <= 65536 && found == "-" && lines++ < 60 && (getline line < path) > 0)
                if (line ~ /^token=[A-Za-z0-9._:@+-]+$/) found = substr(line, 7)
            close(path)
            return found
        }
        BEGIN { FS = "\t"; OFS = "\t" }
        $1 == ENVIRON["WT_DEPTH"] {
            split($3, t, ".")
            ns = t[1] substr(t[2] "000000000", 1, 9)
            sub(/^0+/, "", ns)
            print $2, substr($5, 1, length($5) - length($2) - 1), (ns == "" ? "0" : ns), \
                ($2 ~ /^[SDF]/ ? token(ENVIRON["WT_DATA"] "/" $5, $4) : "-")
        }'
}

# ---- publish ----

do_publish() {
    use_data "$1"
    use_find
    far_lock
    while read_chunk 200; do
        paths=''
        each publish_check
        junk_aside
        identities
        each publish_restore
        each publish_write
        remove_garbage
        durable
        each publish_rename
        remove_garbage
        took=''
        each publish_take
        if [ -n "$took" ]; then
            identities
            each publish_restore
            remove_garbage
        fi
        durable
        identities
        every publish_tell
    done
}

publish_check() { # JOB STATE ATTEMPT TOKEN ACCEPTED [k=v ...]
    job_directory "${1-}" || { answer error "$why" && return; }
    [ $# -ge 5 ] && is_number "$3" && is_word "$4" || { answer error "not JOB STATE ATTEMPT TOKEN ACCEPTED" && return; }
    case $2 in SUBMITTED | DONE | FAILED) ;; *) answer error "$2 is not a state to publish" && return ;; esac
    [ -d "$dir" ] || { answer missing && return; }
    eval "dir_$i=\$dir"
    for name in SUBMITTED DONE FAILED; do
        [ ! -s "$dir/$name" ] || paths=$paths$dir/$name$NL
    done
}

# junk_aside: rename state markers in $paths away that are longer than any of ours (reading is byte by byte)
junk_aside() {
    [ -n "$paths" ] || return 0
    IFS=$NL
    # shellcheck disable=SC2046,SC2086
    set -- $("$FIND" $paths -maxdepth 0 -type f -size +128 -print 2>/dev/null)
    IFS=$TAB
    for path; do
        move_aside "${path%/*}" "${path##*/}"
    done
}

publish_restore() {
    eval "dir=\$dir_$i"
    restore_hidden "$5"
}

# publish_write JOB STATE ATTEMPT TOKEN ACCEPTED [k=v ...]: the content, complete, under the hidden name
publish_write() {
    eval "dir=\$dir_$i new_$i="
    newer_than "$3" "$2" "$4" && { answer older && return; }
    new=$dir/.watchties.new.$2
    read_fields "$dir/$2" && stands=$content || stands=-
    shift 5
    wanted=''
    for line; do
        wanted=$wanted$line$NL
    done
    [ "$wanted" != "$stands" ] || return 0
    write_new "$new" "$wanted" && eval "new_$i=\$new" && return
    garbage=$garbage$new$NL
    answer error "cannot write in $dir (disk full? not allowed?)"
}

# publish_rename JOB STATE: the marker stands; then the other states' markers go
publish_rename() {
    eval "dir=\$dir_$i new=\$new_$i"
    if [ -n "$new" ]; then
        clear_name "$dir" "$2"
        mv -f "$new" "$dir/$2" || { answer error "cannot rename in $dir" && return; }
    fi
    for name in SUBMITTED DONE FAILED; do
        [ "$name" != "$2" ] || continue
        clear_name "$dir" "$name"
        [ ! -e "$dir/$name" ] && [ ! -L "$dir/$name" ] || garbage=$garbage$dir/$name$NL
    done
}

# publish_take JOB STATE ATTEMPT TOKEN ACCEPTED: rename requests that are accepted away; publish_restore looks at them again
publish_take() {
    eval "dir=\$dir_$i"
    for name in PENDING CANCEL; do
        eval "ns=\$${name}_$i"
        [ "$ns" != - ] && accepted "$ns" "$5" || continue
        clear_name "$dir" ".watchties.taken.$name"
        mv -f "$dir/$name" "$dir/.watchties.taken.$name" && took=1
    done
}

publish_tell() {
    eval "word=\${answer_$i:-ok} detail=\$detail_$i"
    eval "printf '%s\\n' \"\${1:--}$TAB\$word$TAB\$PENDING_$i$TAB\$CANCEL_$i\${detail:+$TAB\$detail}\""
}

# ---- claim ----

do_claim() {
    use_data "$1"
    use_run "$2"
    far_lock
    while read_chunk 100; do
        each claim_directory
        make_directories
        each claim_take
        durable
        every claim_tell
    done
}

claim_directory() { # JOB ATTEMPT TOKEN [EVIDENCE ...]
    attempt_directory "$@" || { answer error "$why" && return; }
    [ -d "$a" ] || garbage=$garbage$a$NL
}

# make_directories: all those of a chunk in one call
make_directories() {
    [ -n "$garbage" ] || return 0
    IFS=$NL
    # shellcheck disable=SC2086
    mkdir -p $garbage
    IFS=$TAB garbage=''
}

# claim_take JOB ATTEMPT TOKEN [EVIDENCE ...]: find out how far this attempt has come, and make it this run's
claim_take() {
    attempt_directory "$@"
    [ -d "$a" ] || { answer error "cannot make $a" && return; }
    began=''
    if read_fields "$a/begun"; then
        [ "$f_state" != cancelled ] || { answer cancelled && return; }
        IFS=$TAB
        # shellcheck disable=SC2086
        set -- "$@" && began=$(spaced "$text")
    fi
    if [ -f "$a/reply" ]; then
        answer 'done'
    elif take_over intent; then
        answer unknown
    elif take_over claim; then
        set_all_aside "$@" && answer held || answer error "$why"
    elif take_over intent; then # an orphan's submit was faster
        answer unknown
    elif [ -n "$began" ]; then
        answer unknown
    elif write_new "$a/claim.$run" ''; then
        set_all_aside "$@" && answer new || answer error "$why"
    else
        answer error "cannot write in $a (disk full? not allowed?)"
    fi
    eval "[ \"\$answer_$i\" = unknown ]" && [ -n "$began" ] && answer begun "$began"
}
