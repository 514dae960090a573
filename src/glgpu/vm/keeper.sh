#!/bin/sh
# What sees a detached training home, on the VM itself and as root: `sh keeper VERB RUN HOME [WORDS]`. Once the container
# has ended, or has to, outputs, checkpoints and log go to where the job has proved that they can go; then the VM powers
# off. What opens that place comes by standard input alone, or from Google's metadata server, and stays in /run, which is
# memory, and which no container sees; /dev/shm is the container's too where it shares the host's.
set -eu
umask 077

verb=$1
run=$2
home=$3
shift 3
keep=${GLGPU_ROOT:-}/run/glgpu/keeper
account=http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default
list=$keep/list
manifest=$keep/manifest
# Bytes from which on a file travels alone.
big=33554432
# The one file of the bundle at hand, where it is only one.
only=

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
    {
        echo bundle
        paste -d ' ' "$keep/sizes" "$keep/sums" | sed 's/^/file /'
    } >>"$manifest"
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
        echo "part save-$1-$count-$index-$tries $size $(cut -d ' ' -f 1 "$keep/sha256.sum")" >>"$manifest"
        begin=$((begin + size))
    done
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
    if [ -s "$keep/watcher" ] && kill -0 "$(cat "$keep/watcher")" 2>/dev/null; then
        say "the watch that has begun goes on"
        exit 0
    fi
    echo $$ >"$keep/watcher"
    end=$(($(date +%s) + $1))
    code=$2
    checkpoints=$3
    shift 3
    reason=ended
    state=null
    while :; do
        # Where the engine does not answer, the training may go on.
        if said=$(engine inspect --format '{{json .State}}' "$run" 2>&1); then
            state=$said
            case $said in
            *'"Running":true'*) ;;
            *) break ;;
            esac
        else
            case $said in
            *[Nn]'o such '*) break ;;
            esac
        fi
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
    pause=5
    until save "$number" all "$@" ${checkpoints:+"$checkpoints"}; do
        say "save $number failed; the next one in $pause s"
        sleep "$pause"
        number=$((number + 1))
        pause=$((pause * 2))
        [ "$pause" -le 300 ] || pause=300
    done
    say "the outputs are where they belong"
    # A shutdown of Google's own waits for this.
    : >"$home/is-home"
    rm -rf "$keep"
    shutdown -P now
    ;;
*)
    echo "unknown verb $verb" >&2
    exit 64
    ;;
esac
