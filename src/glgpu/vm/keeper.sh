#!/bin/sh
# What sees a detached training or a notebook home, on the VM itself and as root: `sh keeper VERB RUN HOME [WORDS]`. Once
# the container has ended, or has to, what it made and its log go to where the job has proved that they can go; then the
# VM powers off. What a notebook has changed goes there every few minutes as well. What opens that place comes by standard
# input alone, or from Google's metadata server, and stays in /run, which is memory, and which no container sees; /dev/shm
# is the container's too where it shares the host's.
set -eu
umask 077

verb=$1
run=$2
home=$3
shift 3
keep=${GLGPU_ROOT:-}/run/glgpu/keeper
metadata=http://metadata.google.internal/computeMetadata/v1/instance
account=$metadata/service-accounts/default
list=$keep/list
manifest=$keep/manifest
# Bytes from which on a file travels alone.
big=33554432
# The one file of the bundle at hand, where it is only one.
only=
# Whole copies of what has changed in a notebook's workspace, in a folder of that name: the one beside it is glgpu's own.
work=$home/work

engine() { docker "$@"; }

say() { printf '%s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*" >&2; }

# The header fields with which a request is let in. A token of the VM's own account is good for minutes to an hour, so that
# it is asked for each time; it is on no command line.
log_in() {
    cp "$keep/headers" "$keep/login.$$"
    if [ -s "$keep/account" ]; then
        said=$(curl -sf -m 20 --retry 3 -H 'Metadata-Flavor: Google' "$account/token") || {
            echo "Google's metadata server gives this VM no token of an account" >&2
            return 1
        }
        printf '%s' "$said" | sed -n 's/.*"access_token" *: *"\([^"]*\)".*/Authorization: Bearer \1/p' \
            >>"$keep/login.$$"
    fi
    mv "$keep/login.$$" "$keep/login"
}

# put NAME: standard input goes there. A place that takes nothing for a minute is given up. What has no known length goes
# in chunks, which is HTTP/1.1.
put() {
    log_in || return 1
    set -- "$(cat "$keep/address")$1"
    [ ! -s "$keep/authority" ] || set -- "$1" --cacert "$keep/authority"
    curl -sSf --http1.1 --connect-timeout 20 --speed-limit 1000 --speed-time 60 -o /dev/null -D "$keep/answer" \
        -H "@$keep/login" -T - "$@"
}

# send NAME: the same; the checksum of what went is in $keep/sha256.sum afterwards. Cloud Storage answers with an MD5 of
# what has come.
send() {
    name=$1
    set -- "$keep/sha256"
    [ ! -s "$keep/account" ] || set -- "$@" "$keep/md5"
    for pipe in "$@"; do
        rm -f "$pipe"
        mkfifo "$pipe"
        "${pipe##*/}sum" <"$pipe" >"$pipe.sum" &
    done
    tee "$@" | put "$name" || {
        wait
        return 1
    }
    wait
    [ -s "$keep/account" ] || return 0
    came=$(tr -d '\r' <"$keep/answer" | sed -n 's/^[Xx]-[Gg]oog-[Hh]ash:.*md5=\([^ ,]*\).*/\1/p')
    [ -z "$came" ] || came=$(printf '%s' "$came" | base64 -d | od -An -v -tx1 | tr -d ' \n')
    [ -z "$came" ] || [ "$came" = "$(cut -c 1-32 "$keep/md5.sum")" ] || {
        echo "$name has not come as it went" >&2
        return 1
    }
}

# below yes|no PATH...: the big files below the paths, or the others, NUL-terminated.
below() {
    which=$1
    shift
    for path in "$@"; do
        [ -e "./$path" ] || continue
        if [ "$which" = yes ]; then
            find "./$path" -type f -size "+${big}c" -print0
        else
            find "./$path" -type f ! -size "+${big}c" -print0
        fi
    done | sort -zu
}

# piece BEGIN SIZE: that much of the bundle's bytes.
piece() {
    if [ -n "$only" ]; then
        tail -c "+$(($1 + 1))" -- "$only"
    else
        xargs -0 cat -- <"$list" | tail -c "+$(($1 + 1))"
    fi | head -c "$2"
}

# bundle NUMBER: the list's files, one after the other, cut into parts; the manifest tells of each. Never two at a time:
# GitLab wants the files of a package one by one. No name is used twice: whoever may only add to a bucket may not write
# over what may have come in spite of a failure.
bundle() {
    [ -s "$list" ] || return 0
    part=$(cat "$keep/part")
    count=$(grep -c '^bundle$' "$manifest") || true
    xargs -0 sha256sum -- <"$list" >"$keep/sums" || return 1
    xargs -0 stat -c %s -- <"$list" >"$keep/sizes" || return 1
    # A big file that an earlier save has sent, and that is as it was, stays where it is.
    known=
    [ -z "$only" ] || known=$keep/known-$(cut -d ' ' -f 1 "$keep/sums" | tr -cd '0-9a-f')
    {
        echo bundle
        paste -d ' ' "$keep/sizes" "$keep/sums" | sed 's/^/file /'
    } >>"$manifest"
    if [ -n "$known" ] && [ -s "$known" ]; then
        cat "$known" >>"$manifest"
        return 0
    fi
    : >"$keep/sent"
    total=$(awk '{ n += $1 } END { printf "%.0f", n }' "$keep/sizes")
    begin=0
    index=0
    while [ "$begin" -lt "$total" ]; do
        size=$((total - begin))
        [ "$size" -le "$part" ] || size=$part
        index=$((index + 1))
        tries=1
        until piece "$begin" "$size" | send "save-$1-$count-$index-$tries"; do
            [ "$tries" -lt 3 ] || return 1
            tries=$((tries + 1))
            sleep 2
        done
        echo "part save-$1-$count-$index-$tries $size $(cut -d ' ' -f 1 "$keep/sha256.sum")" >>"$keep/sent"
        begin=$((begin + size))
    done
    cat "$keep/sent" >>"$manifest"
    [ -z "$known" ] || mv "$keep/sent" "$known"
}

# save NUMBER WHAT PATH...: everything below the paths and the log. The manifest goes last: without one, what is there is
# no save.
save() {
    number=$1
    what=$2
    shift 2
    printf 'glgpu-save 1\nwhat %s\nreason %s\nstate %s\n' "$what" "$reason" "$state" >"$manifest"
    cd "$code" || return 1
    below no "$@" >"$list" || return 1
    bundle "$number" || return 1
    below yes "$@" | xargs -0 -r -n 1 sh "$0" alone "$run" "$home" "$number" || return 1
    mkdir -p "$home/own/glgpu"
    engine logs "$run" 2>&1 | LC_ALL=C sed -f "$keep/mask" >"$home/own/glgpu/train.log" || true
    [ ! -s "$home/gpu.csv" ] || cp "$home/gpu.csv" "$home/own/glgpu/samples.csv"
    cd "$home/own" || return 1
    find ./glgpu -type f -print0 >"$list"
    bundle "$number" || return 1
    put "save-$number.manifest" <"$manifest"
}

# Whether another watch has begun already; else this is the one. Two that begin at once look one after the other.
watched() (
    exec 9>"$keep/beginning"
    flock 9
    if [ -s "$keep/watcher" ] && kill -0 "$(cat "$keep/watcher")" 2>/dev/null; then
        say "the watch that has begun goes on"
        exit 0
    fi
    echo $$ >"$keep/watcher"
    exit 1
)

# The engine's word on the container into $state; whether it runs. Where the engine does not answer, it may.
runs() {
    if said=$(engine inspect --format '{{json .State}}' "$run" 2>&1); then
        state=$said
        case $said in
        *'"Running":true'*) ;;
        *) return 1 ;;
        esac
    else
        case $said in
        *[Nn]'o such '*) return 1 ;;
        esac
    fi
}

# insist NUMBER COMMAND...: saves, over and over.
insist() {
    number=$1
    shift
    pause=5
    until "$@"; do
        say "save $number failed; the next one in $pause s"
        sleep "$pause"
        number=$((number + 1))
        pause=$((pause * 2))
        [ "$pause" -le 300 ] || pause=300
    done
}

save_training() { save "$number" all "$@"; }

switch_off() {
    say "the outputs are where they belong"
    # A shutdown of Google's own waits for this.
    : >"$home/is-home"
    rm -rf "$keep"
    shutdown -P now
}

# swapped: NUL and line break change places, for tools that want lines.
swapped() { tr '\n\000' '\001\n'; }
unswapped() { tr '\001\n' '\n\000'; }

# A line for each file named by standard input, NUL-terminated, that tells one version of it from another.
versions() { xargs -0 -r stat --printf '%d:%i %s %.9Y %.9Z %n\0' -- 2>/dev/null || true; }

# changed MOST: what has changed in the workspace since its code was there, NUL-terminated in $keep/chosen, up to so many
# bytes: what git does not ignore before the rest, small files before big ones. What is left out is named in $keep/left.
# The time of the change of a file's entry counts, which no program can set.
changed() {
    cd "$code" || return 1
    find . \( -name .git -o -name .ipynb_checkpoints -o -name .virtual_documents -o -name __pycache__ \) -prune \
        -o -type f -cnewer "$home/checked-out" -print0 >"$keep/found" || true
    # Another user's folder: git minds.
    printf '[safe]\n\tdirectory = *\n' >"$keep/.gitconfig"
    HOME=$keep git check-ignore -z --stdin <"$keep/found" 2>/dev/null | swapped >"$keep/ignored" || true
    xargs -0 -r stat --printf '%s %n\0' -- <"$keep/found" 2>/dev/null | swapped |
        awk -v file="$keep/ignored" 'BEGIN { while ((getline line <file) > 0) ignored[line] }
            { name = substr($0, length($1) + 2); print (name in ignored), $1, name }' |
        LC_ALL=C sort -k 1,1n -k 2,2n >"$keep/ordered" || true
    : >"$keep/left"
    awk -v most="$1" -v left="$keep/left" '{
        name = substr($0, length($1) + length($2) + 3)
        if (sum + $2 <= most) { sum += $2; print name } else print $2, name >left
    }' "$keep/ordered" | unswapped >"$keep/chosen"
}

# gather MOST: whole copies of it into $work. A file that somebody has open for writing, or that changes meanwhile, is as
# it was the last time, or not there. Fails where nothing has changed since the last save.
gather() {
    changed "$1" || return 1
    versions <"$keep/chosen" | LC_ALL=C sort -z >"$keep/before"
    swapped <"$keep/before" | cut -d ' ' -f 1 | HOME=${home%/*} sh "$home/helper" written "$run" | sed 's/.*/^& /' >"$keep/open"
    : >"$keep/torn"
    [ ! -s "$keep/open" ] || grep -z -f "$keep/open" "$keep/before" >"$keep/torn" || true
    cat "$keep/before" "$keep/torn" >"$keep/version"
    ! cmp -s "$keep/version" "$keep/saved" || return 1
    rm -rf "$work.new"
    mkdir -p "$work.new/workspace" "$work/workspace"
    xargs -0 -r cp --parents --preserve=timestamps -t "$work.new/workspace" -- <"$keep/chosen" 2>/dev/null || true
    versions <"$keep/chosen" | LC_ALL=C sort -z | LC_ALL=C comm -z -23 "$keep/before" - >>"$keep/torn"
    LC_ALL=C sort -z -u "$keep/torn" | sed -z 's/^\([^ ]* \)\{4\}//' >"$keep/names"
    (cd "$work.new/workspace" && xargs -0 -r rm -f -- <"$keep/names")
    (cd "$work/workspace" &&
        xargs -0 -r cp --parents --preserve=timestamps -t "$work.new/workspace" -- <"$keep/names" 2>/dev/null) || true
    rm -rf "$work"
    mv "$work.new" "$work"
    mkdir -p "$home/own/glgpu"
    rm -f "$home/own/glgpu/not-saved.txt"
    [ ! -s "$keep/left" ] || cp "$keep/left" "$home/own/glgpu/not-saved.txt"
}

# save_work NUMBER MOST: what has changed goes where it belongs; nothing to do is success. One at a time.
save_work() (
    exec 9>"$keep/lock"
    flock -w 120 9 || exit 1
    gather "$2" || [ "$reason" != going ] || exit 0
    big=1048576
    code=$work
    save "$1" all workspace || exit 1
    cp "$keep/version" "$keep/saved"
    tell saved "$(date +%s)"
)

save_notebook() { save_work "$number" "$most"; }

# tell NAME VALUE: a file that the login user may read.
tell() {
    echo "$2" >"$home/$1.new"
    chmod 644 "$home/$1.new"
    mv "$home/$1.new" "$home/$1"
}

# Notes when the notebook was last at work: a cell or a terminal, as it says itself, or a GPU of the VM.
note_work() {
    # shellcheck disable=SC2046 # numbers
    set -- $(tr -cd '0-9 ' <"/dev/shm/$run/notebook/door/seen" 2>/dev/null | cut -c 1-60)
    # Nobody works in the future.
    [ "${2:-0}" -le "$used" ] || [ "$2" -gt "$now" ] || used=$2
    since=$(date -u -d '-30 seconds' +%Y-%m-%dT%H:%M:%SZ)
    if tail -n 16 "$home/gpu.csv" 2>/dev/null |
        awk -F , -v since="$since" '$1 >= since && $3 + 0 > 3 { works = 1 } END { exit !works }'; then
        used=$now
    fi
    tell used "$used"
    # For whoever may ask Google and not the VM; it takes no permission.
    if [ "$now" -ge "$telling" ]; then
        telling=$((now + 30))
        curl -sf -m 5 -o /dev/null -X PUT -H 'Metadata-Flavor: Google' --data-raw "$used" \
            "$metadata/guest-attributes/glgpu/notebook-used" || true
    fi
}

case $verb in
take)
    # A tar by standard input: `address`, `headers`, `account` (not empty: they want a token of the VM's own account beside
    # them), `authority` (certificates), `mask` (for sed), `part` (bytes). Where a watch has begun already, it goes on, with
    # these.
    mkdir -p "$keep"
    tar -x -C "$keep" -f - --no-same-owner
    ;;
probe)
    # Something goes where everything is to go.
    printf 'glgpu: %s can leave its outputs here\n' "$run" | put probe
    ;;
alone)
    # alone NUMBER FILE: a big file.
    only=$2
    printf '%s\0' "$2" >"$list"
    bundle "$1"
    ;;
watch)
    # watch SECONDS FOLDER CHECKPOINTS OUTPUT...: until the container ends, or for so long; then all goes home.
    ! watched || exit 0
    end=$(($(date +%s) + $1))
    code=$2
    checkpoints=$3
    shift 3
    reason=ended
    state=null
    while runs; do
        if [ "$reason" = ended ] && [ "$(date +%s)" -ge "$end" ]; then
            reason=deadline
            say "out of time: ending the training"
            engine stop -t 30 "$run" >/dev/null || true
        else
            sleep 2
        fi
    done
    # Another VM of this run, before or after this one, has other numbers.
    number=$(date +%s)
    if [ -e "$home/preempted" ]; then
        reason=preempted
        # Seconds are left: what a next run needs most goes first.
        if [ -n "$checkpoints" ] && save "$number" checkpoints "$checkpoints"; then
            number=$((number + 1))
        fi
    fi
    insist "$number" save_training "$@" ${checkpoints:+"$checkpoints"}
    switch_off
    ;;
watch-notebook)
    # watch-notebook FOLDER MOST IDLE EVERY: until the container ends, its soft end comes, or nothing has been at work for
    # so many seconds. What has changed, up to so many bytes, goes home every so many seconds, and in the end.
    ! watched || exit 0
    code=$1
    most=$2
    idle=$3
    every=$4
    reason=going
    state=null
    # Whatever the notebook prints, its token goes nowhere.
    printf 's/%s/[MASKED]/g\n' "$(cat "/dev/shm/$run/notebook/token")" >>"$keep/mask"
    used=$(date +%s)
    telling=0
    next=$((used + every))
    saver=
    while runs; do
        # Whoever ends the run has taken over.
        [ ! -e "$keep/taken-over" ] || exit 0
        now=$(date +%s)
        note_work
        if [ "$reason" = going ] && [ "$now" -ge "$(cat "$home/until")" ]; then
            reason=deadline
        elif [ "$reason" = going ] && [ $((now - used)) -ge "$idle" ]; then
            reason=idle
        fi
        if [ "$reason" != going ]; then
            say "ending the notebook: $reason"
            timeout 90 docker stop -t 30 "$run" >/dev/null || true
        elif [ "$now" -ge "$next" ]; then
            next=$((now + every))
            # Beside the watch: a save that hangs keeps nothing from its end.
            if [ -z "$saver" ] || ! kill -0 "$saver" 2>/dev/null; then
                save_work "$now" "$most" &
                saver=$!
            fi
        fi
        sleep 2
    done
    [ ! -e "$keep/taken-over" ] || exit 0
    [ "$reason" != going ] || reason=ended
    [ ! -e "$home/preempted" ] || reason=preempted
    insist "$(date +%s)" save_notebook
    switch_off
    ;;
end-notebook)
    # end-notebook FOLDER MOST: somebody ends it who brings its work home himself. It is where it belongs all the same, for
    # whoever goes on with it; that it is not there stops nothing.
    code=$1
    most=$2
    reason=ended
    state=null
    mkdir -p "$keep"
    : >"$keep/taken-over"
    timeout 60 docker stop -t 5 "$run" >/dev/null || true
    runs || true
    if [ -s "$keep/address" ]; then
        save_work "$(date +%s)" "$most" || say "the last save has failed"
    fi
    gather "$most" || true
    ;;
*)
    echo "unknown verb $verb" >&2
    exit 64
    ;;
esac
