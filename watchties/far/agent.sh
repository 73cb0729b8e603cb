#!/bin/sh
# agent.sh: what watchties does on a far host, in POSIX sh (dash, bash, busybox sh, mksh).
#
# Knows: the marker files of a job, the attempt's directory on a compute host, processes and sessions of this host.
# Must not know: any scheduler (it is given the command lines), any configuration, what is to be done next.
#
#   sh scripts/agent.sh COMMAND DATA [ARGS]     DATA is the directory of the jobs, relative to where it is called
#
#   publish DATA            JOB STATE ATTEMPT TOKEN ACCEPTED [k=v ...]  -> JOB ok|older|missing|error PENDING_NS CANCEL_NS [detail]
#   identify DATA           JOB                                         -> JOB PENDING_NS CANCEL_NS LEFTOVER_NS ATTEMPT, the latest that a state shows
#   list DATA DEPTH MARKER...                                           -> MARKER JOB NS TOKEN
#   claim DATA RUN          JOB ATTEMPT TOKEN [EVIDENCE ...]            -> JOB new|held|unknown|begun|done|cancelled|error [detail]
#   submit DATA RUN [SETUP] JOB ATTEMPT TOKEN COMMANDLINE               -> JOB replied|refused|error [detail]
#   adopt DATA RUN          JOB ATTEMPT TOKEN TEXT                      -> JOB ok|error [detail]
#   cancel DATA [WHY]       JOB ATTEMPT TOKEN COMMANDLINE|-             -> JOB none|exited|ended|running|error [detail]
#   status DATA [QUERY]     JOB ATTEMPT TOKEN           -> JOB exit|begun|cancelled|submitted|intent|claimed|none|error [k=v ...]
#                           what an attempt that has ended left running in its session is ended before its end is told
#   wrapper JOBDIR ATTEMPT TOKEN [ID]                                   what a scheduler starts
#   version
#
# Lines come on standard input, one a job, and are answered in their order; fields are separated by tabs, "-" is none.
# Nothing is done, and no lock taken, before the first line has come: a caller may call before it knows what to say.
# A line that begins with a tab continues the one before: x EXITCODE, o LINE of standard output, e LINE of standard error.
# Exit code: 0 every line was answered, 2 usage, 75 try again later (the lock is held), anything else: broken.
#
# An attempt lives in JOB/.watchties/ATTEMPT.TOKEN/; which of these files stand there is its state:
#   claim.RUN    claimed by that run; another run's claim renames it, so that the first one's submit finds nothing
#   intent.RUN   the claim, renamed by submit before the scheduler hears anything
#   reply        what the scheduler said, whole: the submission is known to have happened (or to have failed)
#   begun        ONE name for the wrapper's start and for the tombstone of cancel (state=cancelled, why=WHY)
#   killed       cancel is stopping it     exit   the wrapper's last word, before the marker DONE or FAILED
# An earlier attempt's markers and outputs are moved to JOB/.watchties/before.ATTEMPT/.
#
# Each rule of the protocol is one function with the rule's name: far_lock, restore_hidden, back_over_accepted,
# state_rank, fenced, begun_is_one_name, cancel_waits. Tests take them out one by one.
#
# Functions are called by name through `each` and `every`, and eval sets variables, which shellcheck cannot see:
# shellcheck disable=SC2329,SC2154,SC2034,SC2015,SC2089,SC2090

AGENT_VERSION=3

TAB=$(printf '\t')
NL='
'
USUAL_IFS=" $TAB$NL"
IFS=$TAB # fields; "$*" joins with it
set -f   # a job may be called *
mounts=unknown
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
    for f in "/proc/$$/fd/"[1-9][0-9]*; do
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
        # shellcheck disable=SC2086,SC2016 # two words
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

# durable: what was written for the chunk's jobs until now outlasts a power failure; one call for a whole batch. False if it does not
durable() {
    use_mounts
    disks=$data$NL
    [ -z "$mounts" ] || every add_disks
    IFS=$NL
    # shellcheck disable=SC2086
    sync -f $disks 2>/dev/null && IFS=$TAB && return
    IFS=$TAB
    case $(sync --help 2>&1) in
    *-f*) return 1 ;;
    esac
    sync
}

# use_mounts: set $mounts, where in DATA other disks are mounted (a USER may have one of its own), one a line; nearly always none.
# Looked up once, when there are jobs: an automounter has been at work by then
use_mounts() {
    [ "$mounts" = unknown ] || return 0
    mounts=$(cd "$data" && real=$(pwd -P) && LC_ALL=C REAL=${real%/}/ awk '
        index($5, "\\") { gsub(/\\040/, " ", $5); gsub(/\\011/, "\t", $5); gsub(/\\012/, "\n", $5); gsub(/\\134/, "\\", $5) }
        index($5, ENVIRON["REAL"]) == 1 { print substr($5, length(ENVIRON["REAL"]) + 1) }' /proc/self/mountinfo) 2>/dev/null
}

# add_disks JOB: to $disks those that are mounted on the way to a job
add_disks() {
    IFS=$NL
    for f in $mounts; do
        case ${1-}/ in "$f"/*) ;; *) continue ;; esac
        case $NL$disks in *"$NL$data/$f$NL"*) ;; *) disks=$disks$data/$f$NL ;; esac
    done
    IFS=$TAB
}

# must_be_durable: or nothing that depends on it is done
must_be_durable() {
    durable || broken 71 "cannot sync $data (disk full or broken?)"
}

# far_lock: publications (and claims) in DATA wait for one another. The lock is held by this process and by what it starts:
# an orphan of an earlier run cannot undo a later one.
far_lock() {
    is_plain_or_none "$data/.watchties.lock" || broken 73 "$data/.watchties.lock is no plain file: remove it"
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

# far_unlock: before anything that a caller whose connection was cut without a word would have us wait for: more lines, or that he
# reads ours. sshd may take hours to notice
far_unlock() {
    exec 9>&-
}

# is_plain_or_none FILE: to be written to: a pipe would never take it, a link leads elsewhere
is_plain_or_none() {
    [ ! -L "$1" ] && { [ -f "$1" ] || [ ! -e "$1" ]; }
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
    is_our_tree
}

# is_our_tree: DATA is known by a mark in it, which is remembered beside this script. A mount point without its disk looks like a
# tree without jobs: "nothing of it runs", "it is not there any more" would be said of jobs that run. The first look that finds
# something in DATA makes the mark; where that cannot be written nothing is remembered, and every DATA will do
is_our_tree() {
    marks=${agent%/*}/.watchties.trees mark='' known=''
    case $agent:$data in
    *"$TAB"* | *"$NL"*) return ;;
    */scripts/agent.sh:*) ;;
    *) return ;;
    esac
    [ ! -f "$marks" ] || while read -r is path; do
        [ "$path" != "$data" ] || known=$is
    done <"$marks"
    [ ! -f "$data/.watchties.tree" ] || read -r mark <"$data/.watchties.tree"
    [ -z "$known" ] || [ "$mark" = "$known" ] ||
        broken 66 "$data is not the tree that was there; mount its disk, or, if it is the right one, remove $marks"
    [ -n "$known" ] || remember_tree 2>/dev/null
}

# remember_tree: the mark, durably, and then that it is known; a DATA without anything may be a mount point whose disk comes later
remember_tree() {
    if [ -z "$mark" ]; then
        set +f
        set -- "$data"/*
        set -f
        { [ -e "$1" ] && read -r mark </proc/sys/kernel/random/uuid; } || return 0
        # whole under its name from the first moment, and never taken away: of two agents at once each would remember another one
        printf '%s\n' "$mark" >"$data/.watchties.tree.$$" && durable && ln "$data/.watchties.tree.$$" "$data/.watchties.tree"
        { read -r mark <"$data/.watchties.tree" && durable; } || return 0 # another one may have been faster
    fi
    set +f
    rm -f "$data/.watchties.tree."* # one that was killed leaves its own; one that is late finds the mark in its place
    set -f
    printf '%s\n' "$mark$TAB$data" >>"$marks"
    return 0
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

# rename_all: every FROM<tab>TO line of $moves. One program renames a whole batch where there is perl, as a program for each
# job costs more than all else. What could not be renamed is still there
rename_all() {
    [ -n "$moves" ] || return 0
    if [ "${#moves}" -gt 1000 ] && command -v perl >/dev/null 2>&1; then
        printf '%s' "$moves" | perl -ne 'chomp; ($from, $to) = split /\t/; rename $from, $to'
    else
        IFS=$NL
        # shellcheck disable=SC2086
        set -- $moves
        IFS=$TAB
        for line; do
            mv -f "${line%%"$TAB"*}" "${line#*"$TAB"}"
        done
    fi
    moves=''
} 2>/dev/null

# write_new FILE TEXT: make FILE anew; never through a link that somebody has laid there
write_new() {
    if [ -e "$1" ] || [ -L "$1" ]; then
        rm -rf "$1"
    fi
    set -C
    { printf '%s' "$2" >"$1"; } 2>/dev/null
    written=$?
    set +C
    return "$written"
}

# read_fields FILE: set $text (its k=v lines joined by tabs), $content (as it is) and the fields we know, f_KEY
read_fields() {
    text='' content='' lines=0
    f_state='' f_attempt='' f_token='' f_why='' f_id='' f_host='' f_pid='' f_group='' f_session='' f_leader='' f_boot='' f_killed=''
    [ -f "$1" ] && [ ! -L "$1" ] || return 1
    while [ "$lines" -lt 60 ] && IFS= read -r line; do
        content=$content$line$NL lines=$((lines + 1))
        case $line in
        *"$TAB"*) ;;
        state=* | attempt=* | token=* | why=* | id=* | host=* | pid=* | group=* | session=* | leader=* | boot=* | killed=*)
            eval "f_${line%%=*}=\${line#*=}"
            text=$text${text:+$TAB}$line
            ;;
        [a-z]*=*) text=$text${text:+$TAB}$line ;;
        esac
    done 2>/dev/null <"$1"
}

# read_exit: the fields of the attempt's `exit`, up to its last line: one that is being written, or that a power failure has
# cut, does not count
read_exit() {
    read_fields "$a/exit" || return 1
    case $text in *"${TAB}whole=yes") text=${text%"$TAB"*} ;; *) return 1 ;; esac
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

# read_chunk MAX: read up to MAX lines into line_1 ... line_$n; false at the end. A last line without an end is one that a lost
# connection has cut: half a command is never run, half a name never looked up
read_chunk() {
    n=0
    while [ "$n" -lt "$1" ] && IFS= read -r line; do
        n=$((n + 1))
        eval "line_$n=\$line answer_$n= detail_$n= dir_$n= fresh_$n= older_$n="
    done
    garbage='' moves=''
    [ "$n" -gt 0 ]
}

# set_chunk LINES: these, as if they had been read
set_chunk() {
    n=0
    IFS=$NL
    for line in $1; do
        n=$((n + 1))
        eval "line_$n=\$line answer_$n="
    done
    IFS=$TAB
}

# each FUNCTION: call it with the fields of every line that has no answer yet; $i is the line's number
each() {
    i=0
    while [ "$i" -lt "$n" ]; do
        i=$((i + 1))
        eval "line=\$line_$i answer=\$answer_$i fresh=\$fresh_$i"
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
        paths=''
        each identify_check
        too_long
        identities
        every identify_tell
    done
}

identify_check() {
    job_directory "${1-}" || return 0
    eval "dir_$i=\$dir"
    for name in SUBMITTED DONE FAILED; do
        [ ! -s "$dir/$name" ] || paths=$paths$dir/$name$NL
    done
}

identify_tell() {
    eval "dir=\$dir_$i" latest=0
    for name in SUBMITTED DONE FAILED; do
        case $junk in *"$NL$dir/$name$NL"*) continue ;; esac
        [ -n "$dir" ] && read_fields "$dir/$name" && is_number "$f_attempt" && [ "$f_attempt" -gt "$latest" ] && latest=$f_attempt
    done
    [ "$latest" != 0 ] || latest=-
    eval "printf '%s\\n' \"\${1:--}$TAB\$PENDING_$i$TAB\$CANCEL_$i$TAB\$hidden_PENDING_$i$TAB$latest\""
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
    while read_chunk 200; do
        far_lock # not before there is something to publish: a caller may have called early
        paths=''
        each publish_check
        remove_garbage
        junk_aside
        identities
        each publish_restore
        each publish_write
        remove_garbage
        must_be_durable
        each publish_rename
        rename_all
        each publish_renamed
        remove_garbage
        took=''
        each publish_take
        rename_all
        if [ -n "$took" ]; then
            identities
            each publish_restore
            remove_garbage
        fi
        must_be_durable
        identities
        far_unlock
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
        new=$dir/.watchties.new.$name # of a publication that was killed: maybe of a state that nobody publishes again
        { [ ! -f "$new" ] && [ ! -L "$new" ]; } || garbage=$garbage$new$NL
    done
}

# too_long: set $junk, a line for each state marker of $paths that is longer than any of ours (reading is byte by byte)
too_long() {
    junk=''
    [ -n "$paths" ] || return 0
    IFS=$NL
    # shellcheck disable=SC2086
    junk=$NL$("$FIND" $paths -maxdepth 0 -type f -size +128 -print 2>/dev/null)$NL
    IFS=$TAB
}

# junk_aside: rename them away
junk_aside() {
    too_long
    IFS=$NL
    # shellcheck disable=SC2086
    set -- $junk
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
    eval "dir=\$dir_$i new_$i= older_$i="
    newer_than "$3" "$2" "$4" && { eval "older_$i=older" && return; } # but what it has accepted is taken off
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

# publish_rename JOB STATE: the marker is to stand
publish_rename() {
    eval "dir=\$dir_$i new=\$new_$i"
    [ -n "$new" ] || return 0
    clear_name "$dir" "$2"
    moves=$moves$new$TAB$dir/$2$NL
}

# publish_renamed JOB STATE: it stands; then the other states' markers go
publish_renamed() {
    eval "dir=\$dir_$i new=\$new_$i older=\$older_$i"
    [ -z "$older" ] || return 0
    [ -z "$new" ] || [ ! -e "$new" ] || { answer error "cannot rename in $dir" && return; }
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
        moves=$moves$dir/$name$TAB$dir/.watchties.taken.$name$NL took=1
    done
}

publish_tell() {
    eval "word=\${answer_$i:-\${older_$i:-ok}} detail=\$detail_$i"
    eval "printf '%s\\n' \"\${1:--}$TAB\$word$TAB\$PENDING_$i$TAB\$CANCEL_$i\${detail:+$TAB\$detail}\""
}

# ---- claim ----

do_claim() {
    use_data "$1"
    use_run "$2"
    while read_chunk 100; do
        far_lock
        each claim_directory
        make_directories
        each claim_take
        must_be_durable
        far_unlock
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
    if is_tombstone && { [ "$f_why" != rejected ] || [ ! -f "$a/reply" ]; }; then # its reply tells best why it was rejected
        answer cancelled
    elif [ -f "$a/reply" ]; then
        answer 'done'
    elif take_over intent; then
        answer_unknown
    elif take_over claim; then
        set_all_aside held "$@"
    elif take_over intent || [ -e "$a/begun" ]; then # an orphan's submit was faster
        answer_unknown
    elif write_new "$a/claim.$run" ''; then
        set_all_aside new "$@"
    else
        answer error "cannot write in $a (disk full? not allowed?)"
    fi
}

# take_over claim|intent: whoever's it is, it is this run's now; false if there is none (any more)
take_over() {
    set +f
    for f in "$a/$1".*; do
        [ "$f" != "$a/$1.$run" ] || break
    done
    set -f
    [ -e "$f" ] || return 1
    [ "$f" = "$a/$1.$run" ] || mv -f "$f" "$a/$1.$run" 2>/dev/null
}

# is_tombstone: cancel was first; else the fields of `begun`, if it stands, are read
is_tombstone() {
    read_fields "$a/begun" && [ "$f_state" = cancelled ]
}

# answer_unknown: an intent without a reply; unless the wrapper itself has said that it began
answer_unknown() {
    if read_fields "$a/begun"; then
        join_words "$text"
        answer begun "$words"
    else
        answer unknown
    fi
}

# join_words FIELDS: set $words, the fields joined by spaces
join_words() {
    # shellcheck disable=SC2086
    set -- $1
    IFS=' '
    words="$*"
    IFS=$TAB
}

# set_all_aside ANSWER JOB ATTEMPT TOKEN [EVIDENCE ...]: what an earlier attempt has left must not be taken for this one's
set_all_aside() {
    outcome=$1
    shift 4
    for name in SUBMITTED DONE FAILED 'remote_ties_run.*' "$@"; do
        case /$name/ in
        /-/) continue ;;
        *//* | */../* | */./* | /.watchties*) answer error "$name is not a name of evidence" && return ;;
        esac
        set_aside_matching "$name" || { answer error "cannot move $name aside in $dir" && return; }
    done
    answer "$outcome"
}

# set_aside_matching NAME: the file of that name, else those that match it as a pattern
set_aside_matching() {
    if [ -e "$dir/$1" ] || [ -L "$dir/$1" ]; then
        set_aside "$1"
        return
    fi
    set +f
    for f in "$dir"/$1; do # IFS is a tab: split nowhere
        set -f
        if [ -e "$f" ] || [ -L "$f" ]; then
            set_aside "${f#"$dir"/}" || return 1
        fi
    done
    set -f
}

# set_aside PATH: rename JOB/PATH to JOB/.watchties/before.ATTEMPT/PATH, over nothing; left alone beyond a symbolic link
set_aside() {
    part=$dir rest=$1
    while [ "$rest" != "${rest#*/}" ]; do
        part=$part/${rest%%/*} rest=${rest#*/}
        [ ! -L "$part" ] || return 0
    done
    to=$dir/.watchties/before.$attempt/$1 number=0
    while [ -e "$to" ] || [ -L "$to" ]; do
        number=$((number + 1))
        to=$dir/.watchties/before.$attempt/$1.$number
    done
    [ -d "${to%/*}" ] || mkdir -p "${to%/*}" || return 1
    mv -f "$dir/$1" "$to"
}

claim_tell() {
    tell "$@"
    eval "[ \"\$answer_$i\" != done ]" || { attempt_directory "$@" && tell_reply; }
}

# tell_reply: print the stored reply as continuation lines
tell_reply() {
    while IFS= read -r line; do
        printf '%s\n' "$TAB$line"
    done <"$a/reply"
}

# ---- submit, adopt ----

do_submit() { # DATA RUN [SETUP]
    use_data "$1"
    use_run "$2"
    (
        set +fu
        IFS=$USUAL_IFS
        here=$PWD
        eval "${3-}" </dev/null >&2
        cd "$here" || exit 70
        IFS=$TAB
        set +e -f
        submit_all
        exit 99 # so that a setup that exits is not taken for us
    )
    case $? in
    99) ;;
    71) exit 71 ;; # cannot sync: must_be_durable has said so
    *) broken 70 "ended early: does the setup exit?" ;;
    esac
}

submit_all() {
    use_timeout
    set +f
    for slow in "$data/.watchties.slow."*; do
        { [ ! -e "$slow" ] || [ -e "/proc/${slow##*.}" ]; } || rm -f "$slow" # of one that was killed
    done
    set -f
    slow=$data/.watchties.slow.$$
    rm -f "$slow" # of one that had this number
    while read_chunk 100; do
        given=$NL
        each submit_check
        [ -z "$moves" ] || must_be_durable # an intent promises that the inputs are on disk: nobody sends them again
        rename_all
        must_be_durable
        each submit_begin
        together submit_run
        must_be_durable
        each submit_rename
        rename_all
        each submit_reply
        must_be_durable
        remove_garbage
        every submit_tell
    done
    rm -f "$slow"
}

# together FUNCTION: as `each`, by four workers at once, who can set no answer: most of a submission is waiting for the scheduler
together() {
    function=$1 workers=''
    for worker in 0 1 2 3; do
        [ "$worker" -lt "$n" ] || break
        each by_turn &
        workers=$workers$!$TAB
    done
    # shellcheck disable=SC2086
    wait $workers
}

# by_turn JOB ATTEMPT TOKEN COMMANDLINE: every fourth line is this worker's
by_turn() {
    [ $(((i - 1) % 4)) -ne "$worker" ] || "$function" "$@"
}

# submit_check JOB ATTEMPT TOKEN COMMANDLINE: what needs no submission, or may have none; of the others the claim becomes an
# intent, which stands, durably, before the scheduler hears anything
submit_check() {
    attempt_directory "$@" || { answer error "$why" && return; }
    [ $# -ge 4 ] || { answer error "no command line" && return; }
    case $given in *"$NL$a$NL"*) answer refused "it was given twice" && return ;; esac # two workers would submit it at once
    given=$given$a$NL
    if [ -f "$a/reply" ]; then
        answer replied # said before; never twice
    elif is_tombstone; then
        answer refused cancelled
    elif [ -e "$a/begun" ]; then
        answer refused "it has begun already"
    elif [ ! -e "$a/intent.$run" ]; then
        eval "fresh_$i=1"
        fenced
    fi
}

# fenced: a claim names its run, and the submit of any other run finds nothing that it could make an intent of
fenced() {
    moves=$moves$a/claim.$run$TAB$a/intent.$run$NL
}

# submit_begin JOB ATTEMPT TOKEN COMMANDLINE: without an intent nothing is begun; an orphan may hold this run no longer
submit_begin() {
    attempt_directory "$@"
    [ -e "$a/intent.$run" ] || { answer refused "this run holds no claim" && return; }
    [ ! -e "$a/out" ] || rm -f "$a/out" "$a/err" "$a/reply.new" # of a submit that was cut off
}

# submit_run JOB ATTEMPT TOKEN COMMANDLINE: what the scheduler says, whole, under a hidden name. One failure that was long in
# coming (the controller is down, 5 s) speaks for all that have not been tried
submit_run() {
    attempt_directory "$@"
    shift 3
    [ ! -e "$slow" ] && [ -e "$a/intent.$run" ] || return 0
    read_uptime
    began_at=$uptime
    run_here "$*" >"$a/out" 2>"$a/err"
    code=$?
    read_uptime
    [ "$code" -eq 0 ] || [ $((uptime - began_at)) -lt 400 ] || : >"$slow"
    {
        printf 'x\t%d\n' "$code"
        mark_lines o <"$a/out"
        mark_lines e <"$a/err"
    } >"$a/reply.new" || rm -f "$a/reply.new"
}

# use_timeout: set $has_timeout if timeout(1) is here: GNU and new busybox
use_timeout() {
    has_timeout=''
    [ "$(timeout -s KILL 9 echo yes 2>/dev/null </dev/null)" != yes ] || has_timeout=1
}

# capped SECONDS COMMAND [ARGS]: its exit code; after so many seconds it is killed (137). For the command lines that we are
# given: a scheduler whose controller is dead lets its commands hang, some for ever
capped() {
    if [ -n "$has_timeout" ]; then
        timeout -s KILL "$@"
        return
    fi
    seconds=$1
    shift
    { "$@" <&3 3<&- & } 3<&0 # or it would read from /dev/null, as it runs in the background
    capped=$!
    (
        trap 'kill "$sleeper"; exit' TERM
        sleep "$seconds" &
        sleeper=$!
        wait "$sleeper"
        kill -KILL "$capped"
    ) </dev/null >/dev/null 2>&1 &
    guard=$!
    wait "$capped"
    code=$?
    kill "$guard" 2>/dev/null
    return "$code"
}

# quote TEXT: set $quoted, one word for a shell
quote() {
    quoted='' rest=$1
    while :; do
        case $rest in
        *"'"*) quoted=$quoted${rest%%"'"*}"'\\''" rest=${rest#*"'"} ;;
        *) quoted="'$quoted$rest'" && return ;;
        esac
    done
}

# run_here COMMANDLINE: run it in $dir with the WT_ variables; its exit code. One that is nothing but a capped command needs no
# process between us and its timeout
run_here() {
    (
        cd "$dir" || exit 126
        quote "$agent"
        WT_WRAPPER="exec sh $quoted wrapper"
        quote "$dir"
        export WT_WRAPPER="$WT_WRAPPER $quoted $attempt $token" WT_SAID=".watchties/$attempt.$token/said"
        export WT_AGENT="$agent" WT_JOB="$dir" WT_ATTEMPT="$attempt" WT_TOKEN="$token" WT_NAME="wt.$token" WT_ID="${f_id-}"
        [ -z "$has_timeout" ] || case $1 in
        *[\;\&\|\<\>\(\)\`"$NL"]*) ;;
        'capped '*) set -- "exec timeout -s KILL ${1#capped }" ;;
        esac
        IFS=$USUAL_IFS
        set +fu
        eval "$1"
    ) </dev/null
}

# mark_lines LETTER: copy lines, at most 1000, with LETTER and a tab before each
mark_lines() {
    lines=0
    while [ "$lines" -lt 1000 ] && { IFS= read -r line || [ -n "$line" ]; }; do
        printf '%s\n' "$1$TAB$line"
        lines=$((lines + 1))
    done
}

submit_rename() {
    attempt_directory "$@"
    [ ! -e "$a/reply.new" ] || moves=$moves$a/reply.new$TAB$a/reply$NL
}

# submit_reply JOB ATTEMPT TOKEN COMMANDLINE: the reply stands; what was not tried is a claim again, if this call has made it an intent
submit_reply() {
    attempt_directory "$@"
    if [ ! -e "$a/reply" ] && [ -e "$slow" ] && [ ! -e "$a/out" ]; then
        [ -z "$fresh" ] || mv -f "$a/intent.$run" "$a/claim.$run" 2>/dev/null
        answer later "the scheduler was slow to fail, and was not asked again"
        return
    fi
    [ -f "$a/reply" ] || { answer error "cannot write in $a (disk full?)" && return; }
    garbage=$garbage$a/out$NL$a/err$NL
    answer replied
}

submit_tell() {
    tell "$@"
    eval "[ \"\$answer_$i\" != replied ]" || { attempt_directory "$@" && tell_reply; }
}

do_adopt() {
    use_data "$1"
    use_run "$2"
    while read_chunk 100; do
        each adopt_write
        must_be_durable
        each adopt_rename
        must_be_durable
        every tell
    done
}

# adopt_write JOB ATTEMPT TOKEN TEXT: the id that was found by name takes the place of the reply that never came
adopt_write() {
    attempt_directory "$@" || { answer error "$why" && return; }
    [ ! -f "$a/reply" ] || { answer ok "it has a reply" && return; }
    [ -e "$a/intent.$run" ] || { answer error "this run holds no intent" && return; }
    shift 3
    write_new "$a/reply.new" "x${TAB}0${NL}o$TAB$*$NL" || answer error "cannot write in $a (disk full?)"
}

adopt_rename() {
    attempt_directory "$@"
    mv -f "$a/reply.new" "$a/reply" && answer ok || answer error "cannot rename in $a"
}

# ---- processes: a session is known by its number, the start time of its leader, and the boot ----

# use_this_host: set $this_host and $this_boot
use_this_host() {
    { read -r this_host </proc/sys/kernel/hostname && read -r this_boot </proc/sys/kernel/random/boot_id; } 2>/dev/null ||
        this_host=$(uname -n) this_boot=unknown
}

# process PID: set $session, $group and $start (clock ticks since boot) of a process; false if it is not there
process() {
    { IFS= read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
    IFS=' '
    # shellcheck disable=SC2086
    set -- ${line##*") "}
    IFS=$TAB
    group=$3 session=$4
    shift 19
    start=$1
}

# scan_processes: set $sessions (" 12 15 ": those with a living process), $starts (" 12:991 ...": of every process) and
# $processes (PID SESSION GROUP, one a line). A process may have a line feed in its name: hence grep -H.
scan_processes() {
    set +f
    processes=$(LC_ALL=C grep -Hs '' /proc/[0-9]*/stat | LC_ALL=C awk '
        {
            split($0, path, "/")
            if (!match($0, /.*\) /) || split(substr($0, RLENGTH + 1), f, " ") < 20) next
            starts = starts " " path[3] ":" f[20]
            if (f[1] ~ /[ZX]/) next
            sessions = sessions " " f[4]
            list = list "\n" path[3] "\t" f[4] "\t" f[3]
        }
        END { print sessions " "; print starts " " list }')
    set -f
    sessions=${processes%%"$NL"*} processes=${processes#*"$NL"}
    starts=${processes%%"$NL"*} processes=${processes#*"$NL"}
    [ -n "$starts" ] || broken 72 "cannot read /proc"
}

# session_lives SESSION LEADER_START: by the last scan; a number that was used again is another session
session_lives() {
    case $sessions in *" $1 "*) ;; *) return 1 ;; esac
    case $starts in
    *" $1:$2 "*) return 0 ;;
    *" $1:"*) return 1 ;;
    esac
}

# wrapper_of TOKEN: set $pid, $session, $group and $start of a wrapper at work here, whose files somebody has removed; false if none is
wrapper_of() {
    set +f
    IFS=$NL
    # shellcheck disable=SC2046,SC2062 # split at line feeds
    set -- $(printf '%s\n' "$1" | LC_ALL=C grep -ls -F -f - /proc/[0-9]*/cmdline)
    set -f
    IFS=$TAB
    for f; do
        pid=${f#/proc/} pid=${pid%%/*}
        LC_ALL=C grep -qs wrapper "$f" && process "$pid" && [ "$session" = "$pid" ] && return
    done
    return 1
}

# left_running: of an attempt that has ended, as `exit` says, note the session: what the job has left there is ended too, as a batch
# system does. Only a session of the wrapper's own is ours
left_running() {
    read_fields "$a/begun" || return 0
    where_begun
    [ "$where" = here ] && [ "$f_session" = "$f_pid" ] || return 0
    eval "session_$i=\$f_session leader_$i=\$f_leader group_$i=\$f_group pid_$i=\$f_pid again_$i="
}

# where_begun: whether what `begun` tells of can be seen from here: here, gone (this host has booted since), elsewhere.
# A power failure may have emptied it; the name that it had before tells then where it was.
where_begun() {
    if [ -z "$f_host" ]; then
        where=elsewhere
        set +f
        for f in "$a/begun.$this_host".*; do
            [ ! -e "$f" ] || [ "$f" != "${f#"$a/begun.$this_host.$this_boot"}" ] || where=gone
        done
        set -f
    elif [ "$f_host" != "$this_host" ] || [ -z "$f_session" ]; then
        where=elsewhere
    elif [ "$f_boot" != "$this_boot" ]; then
        where=gone
    else
        where=here
    fi
}

# ---- wrapper ----

do_wrapper() { # JOBDIR ATTEMPT TOKEN [ID]
    case $1 in
    /*) dir=$1 ;;
    *) dir=$PWD/$1 ;;
    esac
    attempt=$2 token=$3 data=$dir garbage=''
    is_number "$attempt" && is_word "$token" || usage
    [ -d "$dir" ] && [ ! -L "$dir" ] && [ ! -L "$dir/.watchties" ] || broken 66 "there is no directory $dir"
    a=$dir/.watchties/$attempt.$token
    [ -d "$a" ] || mkdir -p "$a" || exit 73
    wrapper_begin "${4:-${SLURM_JOB_ID:-${LSB_JOBID:-${PBS_JOBID:-${JOB_ID:-$$}}}}}" || exit 0
    wrapper_run
    until wrapper_exit; do # the disk is full: better late than never
        [ -d "$a" ] || ! tree_stands "$dir" || exit 73 # somebody has removed it: there is nobody left to tell
        tries=$((${tries-0} + 1))
        [ "$tries" -lt 180 ] || break
        sleep 10
    done
    wrapper_publish
    case $code in 99 | 100) exit 1 ;; esac # Grid Engine would requeue it, or put it into error state
    exit "$code"
}

# tree_stands JOBDIR: whether the tree is there, as the lock in its root says; what is renamed or unmounted may come back
tree_stands() {
    f=$1
    while f=${f%/*} && [ -n "$f" ]; do
        [ ! -e "$f/.watchties.lock" ] || return 0
    done
    return 1
}

# wrapper_begin ID: tell that it begins; false if it, or the tombstone, was there before
wrapper_begin() {
    [ ! -e "$a/begun" ] || return 1
    use_this_host
    process $$ || session=$$ group=$$ start=-
    mine=$start leader=$start
    [ "$session" = $$ ] || { process "$session" && leader=$start || leader=-; }
    process $$ || session=$$
    began=$(date -u '+%s %Y-%m-%dT%H:%M:%SZ')
    epoch=${began% *} began=${began#* }
    read_uptime
    began_at=$uptime
    candidate=$a/begun.$this_host.$this_boot.$$ # stays; see where_begun
    case $1 in
    *[!A-Za-z0-9._:@+-]*) id=$(printf '%s' "$1" | tr -c 'A-Za-z0-9._:@+[]-' _) ;;
    *) id=$1 ;;
    esac
    write_new "$candidate" "state=begun${NL}id=$id${NL}host=$this_host${NL}pid=$$${NL}session=$session${NL}group=$group
start=$mine${NL}leader=$leader${NL}boot=$this_boot${NL}began=$began$NL" || broken 73 "cannot write in $a"
    begun_is_one_name "$candidate" && return
    rm -f "$candidate"
    return 1
}

# begun_is_one_name FILE: FILE becomes `begun`, by one atomic operation, unless another one has become it before
begun_is_one_name() {
    [ ! -d "$a/begun" ] || return 1
    ln "$1" "$a/begun" 2>/dev/null || is_same_text "$1" "$a/begun" # a network file system may do it and say no
}

is_same_text() {
    read_fields "$1"
    wanted=$content
    read_fields "$2" && [ "$content" = "$wanted" ]
}

# read_uptime: set $uptime, in hundredths of a second: a clock that nobody sets
read_uptime() {
    IFS=' ' read -r uptime line </proc/uptime
    uptime=${uptime%.*}${uptime#*.}
}

# iso_time EPOCH: set $iso, as date -u would print it; without starting date once more for every job.
# Days to a date as in http://howardhinnant.github.io/date_algorithms.html (civil_from_days)
iso_time() {
    z=$(($1 / 86400 + 719468)) second=$(($1 % 86400))
    era=$((z / 146097)) doe=$((z % 146097))
    yoe=$(((doe - doe / 1460 + doe / 36524 - doe / 146096) / 365))
    doy=$((doe - (365 * yoe + yoe / 4 - yoe / 100)))
    mp=$(((5 * doy + 2) / 153))
    month=$((mp < 10 ? mp + 3 : mp - 9))
    iso=$((yoe + era * 400 + (month <= 2)))
    for digits in $month $((doy - (153 * mp + 2) / 5 + 1)); do
        two_digits "$digits"
        iso=$iso-$two
    done
    two_digits $((second / 3600)) && iso=${iso}T$two
    two_digits $((second / 60 % 60)) && iso=$iso:$two
    two_digits $((second % 60)) && iso=$iso:${two}Z
}

# two_digits N: set $two, N with a leading zero if it has only one digit
two_digits() {
    two=0$1
    two=${two#"${two%??}"}
}

# wrapper_run: run the job's command in a process of its own; set $code
wrapper_run() {
    child='' stopped='' killed=''
    trap wrapper_stop TERM INT HUP
    cd "${agent%/*}/.." && export COMPTIES_HOME="$PWD" PATH="$PWD/bin:$PATH"
    cd "$dir" || exit 1
    clear_name "$dir" remote_ties_run.res
    clear_name "$dir" remote_ties_run.err
    code=143
    if [ -z "$stopped" ]; then
        wrapper_child </dev/null >remote_ties_run.res 2>remote_ties_run.err &
        child=$!
        [ -z "$stopped" ] || kill -TERM "$child"
        wait "$child"
        code=$?
        if [ -n "$stopped" ]; then # that wait was cut short; no signal comes through any more
            wait "$child"
            again=$?
            [ "$again" -eq 127 ] || code=$again # 127: there was nothing left to wait for
        fi
    fi
    [ -n "$stopped" ] || [ "$code" -gt 128 ] && [ -f "$a/killed" ] && killed=1
    trap '' TERM INT HUP
}

wrapper_child() {
    IFS=$USUAL_IFS
    set +fu
    unset WT_AGENT WT_JOB WT_ATTEMPT WT_TOKEN WT_NAME WT_ID WT_WRAPPER WT_SAID
    if [ -d command ] || [ ! -e command ]; then
        printf 'watchties: there is no file "command" in %s\n' "$dir" >&2
        exit 127
    fi
    [ ! -x command ] || exec ./command
    exec sh ./command
}

# wrapper_stop: the scheduler, or cancel, wants an end: pass it on, once, as TERM (a background process ignores INT)
wrapper_stop() {
    trap '' TERM INT HUP
    stopped=1
    read_fields "$a/killed" && [ "$f_state" = session ] && return # cancel has told the others itself
    if [ "$group" = $$ ]; then
        kill -TERM 0
    elif [ -n "$child" ]; then # the group is the scheduler's own
        kill -TERM "$child" 2>/dev/null
    fi
}

# wrapper_exit: write `exit` and the marker, whole; the marker still hidden. False if that cannot be done. `status` makes it
# durable for all that have ended, before anybody acts on it: a sync for each job costs more than the job
wrapper_exit() {
    read_uptime
    took=$((uptime - began_at))
    iso_time $((epoch + took / 100))
    marker=FAILED signal='' cause=''
    [ "$code" -ne 0 ] || [ -n "$killed" ] || marker=DONE
    [ "$code" -le 128 ] || signal="signal=$((code - 128))$NL"
    [ "$marker" = DONE ] || cause="cause=exit$NL"
    [ -z "$killed" ] || cause="cause=cancelled$NL"
    count_files
    two_digits $((took % 100))
    write_new "$dir/.watchties.new.$marker" "state=$marker${NL}attempt=$attempt${NL}token=$token${NL}exit=$code${NL}ended=$iso$NL$cause" ||
        return 1
    write_new "$a/exit" "code=$code$NL${signal}began=$began${NL}ended=$iso${NL}seconds=$((took / 100)).$two
files=$files${NL}bytes=$bytes${NL}host=$this_host${NL}boot=$this_boot$NL${killed:+killed=1$NL}whole=yes$NL"
}

# count_files: set $files and $bytes, of the regular files in the job, without what is ours (markers, record)
count_files() {
    set -- . \( -path './.watchties*' -o -path ./PENDING -o -path ./SUBMITTED -o -path ./DONE -o -path ./FAILED -o -path ./CANCEL \) \
        -prune -o -type f
    IFS=$NL
    # shellcheck disable=SC2046
    set -- $({ find "$@" -printf '%s\n' || find "$@" -exec stat -c %s {} +; } 2>/dev/null) # the second is for busybox
    IFS=$TAB files=$# bytes=0
    for size; do
        case $files$size in
        ??????????*) # more than 31 bits may be needed, which is all that mksh has
            bytes=$(printf '%s\n' "$@" | awk '{ bytes += $1 } END { printf "%.0f", bytes }')
            return
            ;;
        esac
        bytes=$((bytes + size))
    done
}

# wrapper_publish: the marker stands, the other states' markers go; unless a newer attempt's stand there
wrapper_publish() {
    if newer_than "$attempt" "$marker" "$token"; then
        garbage=$garbage$dir/.watchties.new.$marker$NL
    else
        clear_name "$dir" "$marker"
        mv -f "$dir/.watchties.new.$marker" "$dir/$marker"
        for name in SUBMITTED DONE FAILED; do
            [ "$name" = "$marker" ] || [ ! -e "$dir/$name" ] || garbage=$garbage$dir/$name$NL
        done
    fi
    remove_garbage
}

# ---- cancel ----

do_cancel() { # DATA [WHY]: for the tombstones, as whoever has one laid may die before he says so himself
    use_data "$1"
    why_laid=${2-}
    [ -z "$why_laid" ] || is_word "$why_laid" || broken 2 "WHY must be one plain word"
    use_timeout
    use_this_host
    while read_chunk 50; do
        each cancel_entomb
        must_be_durable
        remove_garbage
        each cancel_ask
        cancel_waits
        each cancel_look
        remove_garbage
        every tell
    done
}

# cancel_entomb JOB ATTEMPT TOKEN COMMANDLINE|-: the tombstone stands, or what has begun is told to be killed
cancel_entomb() {
    eval "session_$i= leader_$i= pid_$i="
    attempt_directory "$@" || { answer error "$why" && return; }
    if read_exit; then
        left_running
        return
    fi
    if [ ! -e "$a/begun" ]; then
        [ -d "$a" ] || cancel_removed
        write_new "$a/begun.cancel.$$" "state=cancelled$NL${why_laid:+why=$why_laid$NL}host=$this_host$NL" || { answer error "cannot write in $a" && return; }
        garbage=$garbage$a/begun.cancel.$$$NL
        begun_is_one_name "$a/begun.cancel.$$"
    fi
    is_tombstone && return
    [ -e "$a/begun" ] || { answer error "cannot write in $a" && return; }
    eval "again_$i="
    [ ! -f "$a/killed" ] || eval "again_$i=1"
    where_begun
    how=asked
    [ "$where" != here ] || how=session
    write_new "$a/killed" "state=$how$NL" || answer error "cannot write in $a"
}

# cancel_removed: there is no directory of the attempt; it may run for all that, if somebody has removed it
cancel_removed() {
    if wrapper_of "$token"; then
        eval "session_$i=\$session leader_$i=\$start group_$i=\$group pid_$i=\$pid again_$i=1"
    fi
    mkdir -p "$a"
}

# answer_exit: answer by the file `exit`, if it is there: exited by itself, or ended because of us
answer_exit() {
    read_exit || return 1
    how=exited
    [ -z "$f_killed" ] || how=ended
    join_words "$text"
    answer "$how" "$words"
}

# cancel_ask JOB ATTEMPT TOKEN COMMANDLINE|-: ask the scheduler, also for an entry that still waits in its queue
cancel_ask() {
    attempt_directory "$@"
    shift 3
    ! read_exit || return 0
    is_tombstone && entombed=1 || entombed=''
    said=''
    if [ "${1--}" != - ]; then
        said=$(run_here "$*" 2>&1) && said='' || said="the scheduler's command ended with $?: ${said%%"$NL"*}"
    fi
    eval "said_$i=\$said"
    if [ -n "$entombed" ]; then
        eval "session=\$session_$i"
        [ -n "$session" ] || answer none "$said"
        return
    fi
    where_begun
    [ "$where" != here ] || eval "session_$i=\$f_session leader_$i=\$f_leader group_$i=\$f_group pid_$i=\$f_pid"
}

# cancel_waits: nothing is said to have ended before nothing of it runs any more. TERM, five seconds, KILL, two seconds
cancel_waits() {
    scan_processes
    living || return 0
    signal_living TERM
    wait_gone 5 && return
    signal_living KILL
    wait_gone 2
}

# living: set $targets (" SESSION " and " :GROUP " of what has to be killed and lives) and $spared; false if nothing does
living() {
    targets=' ' spared=' '
    i=0
    while [ "$i" -lt "$n" ]; do
        i=$((i + 1))
        eval "session=\$session_$i"
        [ -n "$session" ] || continue
        eval "leader=\$leader_$i group=\$group_$i pid=\$pid_$i again=\$again_$i"
        session_lives "$session" "$leader" || continue
        # a session that is not the wrapper's own may be the scheduler's: only the wrapper's group is ours then
        [ "$session" = "$pid" ] && targets="$targets$session " || targets="$targets:$group "
        # the wrapper may write its exit file; only when asked again is it killed too
        [ -n "$again" ] || spared="$spared$pid "
    done
    [ "$targets" != ' ' ]
}

# signal_living SIGNAL: to every process of $targets; KILL not to $spared
signal_living() {
    signal=$1
    IFS=$NL
    # shellcheck disable=SC2086
    set -- $processes
    IFS=$TAB
    for line; do
        # shellcheck disable=SC2086
        set -- $line
        case $targets in
        *" $2 "* | *" :$3 "*) ;;
        *) continue ;;
        esac
        [ "$signal" != KILL ] || case $spared in *" $1 "*) continue ;; esac
        kill "-$signal" "$1" 2>/dev/null
    done
}

# wait_gone SECONDS: true as soon as nothing of it lives
wait_gone() {
    polls=0
    while [ "$polls" -lt $(($1 * 10)) ]; do
        sleep 0.1 2>/dev/null || { sleep 1 && polls=$((polls + 9)); }
        polls=$((polls + 1))
        scan_processes
        living || return 0
    done
    return 1
}

# cancel_look JOB ATTEMPT TOKEN: what is left, by the last scan and the files
cancel_look() {
    attempt_directory "$@"
    is_tombstone && entombed=1 || entombed=''
    where_begun
    began_on=${f_host:-unknown}
    eval "said=\${said_$i:+; \$said_$i} session=\$session_$i leader=\$leader_$i pid=\$pid_$i"
    if [ -n "$session" ] && session_lives "$session" "$leader"; then
        answer running "still there on this host, pid $pid$said"
    elif answer_exit; then
        [ "$where" = elsewhere ] || unpublished
    elif [ -n "$entombed" ]; then
        answer none "$said"
    elif [ "$where" = elsewhere ]; then
        answer running "it began on host $began_on; no exit file yet$said"
    else
        unpublished
        answer ended
    fi
}

# unpublished: nothing of the attempt runs here; a marker that its wrapper, killed, has left under a hidden name goes
unpublished() {
    garbage=$garbage$dir/.watchties.new.DONE$NL$dir/.watchties.new.FAILED$NL
}

# ---- status ----

do_status() { # DATA [QUERY]
    use_data "$1"
    use_this_host
    query=${2-}
    [ -z "$query" ] || ask_scheduler "$query"
    sessions='' ended=''
    while read_chunk 100; do
        left=''
        every status_left
        [ -z "$left" ] || cancel_waits
        every status_tell
        remove_garbage
    done
    [ -z "$ended" ] || { set_chunk "$ended" && must_be_durable; } # what has ended is acted upon from now on
    [ -z "$query" ] || tell_query
}

# ask_scheduler QUERY: before any file is read, so that a job that ends in between is seen by its file
ask_scheduler() {
    use_timeout
    scratch=$(mktemp -d 2>/dev/null) || { scratch=$data/.watchties.query.$$ && mkdir "$scratch"; } || broken 73 "cannot write in $data"
    trap 'rm -rf "$scratch"' EXIT
    (
        set +fu
        IFS=$USUAL_IFS
        eval "$1"
    ) </dev/null >"$scratch/out" 2>"$scratch/err"
    query_code=$?
}

tell_query() {
    printf '%s\n' "${TAB}query$TAB$query_code"
    for letter in o e; do
        case $letter in
        o) f=$scratch/out ;;
        e) f=$scratch/err ;;
        esac
        while IFS= read -r line || [ -n "$line" ]; do
            printf '%s\n' "$TAB$letter$TAB$line"
        done <"$f"
    done
}

# status_left JOB ATTEMPT TOKEN: nobody acts upon an end before nothing of the attempt runs any more
status_left() {
    eval "session_$i="
    attempt_directory "$@" && read_exit || return 0
    left_running
    left=1
}

status_tell() { # JOB ATTEMPT TOKEN
    job=${1--} alive=''
    eval "session=\$session_$i leader=\${leader_$i-}"
    if ! attempt_directory "$@"; then
        state=error text=$why
    elif [ -n "$session" ] && session_lives "$session" "$leader"; then
        state=begun text='' alive=yes # it cannot be killed
    elif read_exit; then
        state='exit'
    elif read_fields "$a/begun"; then
        status_begun
    elif [ -f "$a/reply" ]; then
        state=submitted text=''
    else
        state=none text=''
        set +f
        for f in "$a"/claim.* "$a"/intent.*; do
            case $f in
            */claim.?*) [ ! -e "$f" ] || state=claimed ;;
            *) [ ! -e "$f" ] || state=intent ;;
            esac
        done
        set -f
        [ "$state" != none ] || status_none
    fi
    [ "$state" != exit ] || status_exit
    printf '%s\n' "$job$TAB$state${text:+$TAB$text}${alive:+${TAB}alive=$alive}"
    case $state$text in
    exitcode=0*) ;;
    exit* | begun* | submitted*) [ ! -s "$a/said" ] || tail -c 20000 "$a/said" | tail -n 20 | mark_lines "${TAB}e" ;; # why, in the scheduler's words
    esac
    case $state$alive in exit | *no) status_tidy ;; esac
}

# status_none: nothing is known of it. Where claims have left their lock the tree is there, and somebody has removed the attempt
status_none() {
    [ ! -d "$a" ] && [ -e "$data/.watchties.lock" ] || return 0
    text=removed=1 alive=no
    ! wrapper_of "$token" || alive=yes
}

# status_exit: it has ended; if the host has booted since, what was not on disk then is lost
status_exit() {
    ended=$ended$job$NL
    [ "$f_host" != "$this_host" ] || [ "$f_boot" = "$this_boot" ] || text="$text${TAB}rebooted=1"
}

# status_tidy: it has ended; what a submit or a wrapper that was killed has left under names of passage goes
status_tidy() {
    [ ! -e "$a/out" ] && [ ! -e "$a/err" ] && [ ! -e "$a/reply.new" ] || garbage=$garbage$a/out$NL$a/err$NL$a/reply.new$NL
    [ -e "$dir/.watchties.new.DONE" ] || [ -e "$dir/.watchties.new.FAILED" ] || return 0
    where=''
    read_fields "$a/begun" && where_begun
    case $where in
    gone) ;;
    here) # it may be about to rename it
        scan_processes
        ! session_lives "$f_session" "$f_leader" || return 0
        ;;
    *) return 0 ;;
    esac
    unpublished
}

# status_begun: it has begun, as far as the files say; is it alive? Its end may be written while we look
status_begun() {
    state=begun
    [ "$f_state" != cancelled ] || { state=cancelled text=${f_why:+why=$f_why} && return; }
    where_begun
    alive=unknown
    case $where in
    gone) alive=no ;;
    here)
        alive=yes
        if [ -z "$sessions" ] || ! session_lives "$f_session" "$f_leader"; then
            scan_processes # one for the whole call, and one for each that has vanished
            session_lives "$f_session" "$f_leader" || alive=no
        fi
        ;;
    esac
    [ "$alive" = no ] && read_exit && state='exit' alive=''
}

# ---- here it begins ----

close_inherited "$@"
case $0 in
/*) agent=$0 ;;
*) agent=$PWD/$0 ;;
esac
[ $# -ge 1 ] || usage
command=$1
shift
case $command:$# in
version:0) printf 'agent %s\n' "$AGENT_VERSION" ;;
publish:1) do_publish "$@" ;;
identify:1) do_identify "$@" ;;
list:[3-9]) do_list "$@" ;;
claim:2) do_claim "$@" ;;
submit:[23]) do_submit "$@" ;;
adopt:2) do_adopt "$@" ;;
cancel:[12]) do_cancel "$@" ;;
status:[12]) do_status "$@" ;;
wrapper:[34]) do_wrapper "$@" ;;
*) usage ;;
esac
exit 0
