#!/bin/sh
# glgpu's one helper on the VM. Called over SSH as the login user, as: sh helper VERB RUN ARGUMENT...
# Prints facts on standard output and reasons on standard error. Secrets come by standard input alone, and are
# kept in memory (/dev/shm), never on the disk.
set -eu
umask 077

verb=$1
run=$2
shift 2
home=$HOME/glgpu
code=$home/code
memory=/dev/shm/$run
boot=${GLGPU_ROOT:-}/run/glgpu
samples=$home/gpu.csv
metadata=http://metadata.google.internal/computeMetadata/v1/instance
notice=$home/preempted
heed=$home/heed
kept=$home/kept
notebook=$memory/notebook
door=$notebook/door
export DOCKER_CONFIG="$memory/docker"
export GIT_TERMINAL_PROMPT=0 GIT_CONFIG_NOSYSTEM=1

engine() { sudo -n env DOCKER_CONFIG="$DOCKER_CONFIG" docker "$@"; }

# Containers that do not run as root have to read the code and write beside it.
readable() {
    chmod -R u+rwX,go+rX "$code"
    find "$code" -name .git -prune -o -type d -exec chmod go+w {} +
    chmod 711 "$HOME" "$home"
}

# What the engine says of a thing; nothing where there is none, and a failure where the engine cannot be asked.
inspect() {
    if said=$(engine "$@" 2>&1); then
        printf '%s\n' "$said"
        return
    fi
    case $said in
    *[Nn]'o such '*) ;;
    *)
        printf '%s\n' "$said" >&2
        return 1
        ;;
    esac
}

# Every file below paths, NUL-terminated.
each_file() {
    for path in "$@"; do
        [ ! -e "./$path" ] || sudo -n find "./$path" -ignore_readdir_race -type f -print0
    done
}

# The chosen files, and every folder and link below paths, as tar; root reads them, for the container's files are root's.
# GNU's format: POSIX's has a second header for each file's times.
send() {
    {
        cat "$memory/chosen"
        for path in "$@"; do
            [ ! -e "./$path" ] || sudo -n find "./$path" -ignore_readdir_race ! -type f -print0
        done
    } | sudo -n tar -c -f - -b 512 --format=gnu --hard-dereference --no-recursion --null --verbatim-files-from -T -
}

# together COMMAND...: what it prints within 20 ms, errors too, goes on together; its exit code. Docker writes each line by
# itself, and sshd and ssh then carry each by itself. What comes after a pause goes on at once. 1031 is F_SETPIPE_SZ. perl
# is essential on the boot images that we make ready, and on no other (https://packages.debian.org/perl-base).
together() {
    command -v perl >/dev/null || exec "$@" 2>&1
    exec perl -e '
        open(my $said, "-|", "sh", "-c", "exec \"\$@\" 2>&1", "sh", @ARGV) or die;
        fcntl($said, 1031, 1 << 20);
        while (sysread($said, my $data, 1 << 20)) {
            syswrite(STDOUT, $data) or die;
            select(undef, undef, undef, 0.02);
        }
        close($said);
        exit($? && ($? >> 8 || 1));
    ' "$@" 2>&1
}

wall() {
    # Containers must not reach the metadata server: it hands out tokens where the VM has a service account. Port 53
    # of the same address is the VM's name server.
    tool=$1
    address=$2
    # A guest without IPv6 has no tables for it, and no way to that address either.
    [ "$tool" = iptables ] || sudo -n "$tool" -w -S >/dev/null 2>&1 || return 0
    sudo -n "$tool" -w -N DOCKER-USER 2>/dev/null || true
    for protocol in udp tcp; do
        sudo -n "$tool" -w -C DOCKER-USER -d "$address" -p "$protocol" --dport 53 -j RETURN 2>/dev/null ||
            sudo -n "$tool" -w -I DOCKER-USER -d "$address" -p "$protocol" --dport 53 -j RETURN
    done
    sudo -n "$tool" -w -C DOCKER-USER -d "$address" -j REJECT 2>/dev/null && return 0
    # Behind the two exceptions, which stand first.
    sudo -n "$tool" -w -I DOCKER-USER 3 -d "$address" -j REJECT
}

# What the VM's CPUs did since the last call, in percent of one of them; nothing the first time.
cpu_use() {
    read -r _ user nice kernel idle iowait irq softirq steal _ </proc/stat
    busy=$((user + nice + kernel + irq + softirq + steal))
    all=$((busy + idle + iowait))
    cpu=
    [ "${all_before:-$all}" = "$all" ] ||
        cpu=$((100 * $(grep -c '^cpu[0-9]' /proc/stat) * (busy - busy_before) / (all - all_before)))
    busy_before=$busy
    all_before=$all
}

# Moments in the file of samples.
moments() { cut -d , -f 1 "$samples" | uniq | grep -c .; }

# A line for each GPU every few seconds: steps/gpu_samples.py tells the columns. A file that has grown long is thinned to
# every other moment, and from then on there are half as many: it never holds more than 4,000 of them, however long a
# training lasts. A moment in which the driver does not answer is left out.
sample() {
    nvidia-smi -L >/dev/null 2>&1 || return 0
    fields=index,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw
    pause=2
    touch "$samples"
    count=$(moments) || true
    while :; do
        now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
        cpu_use
        if users=$(timeout 20 nvidia-smi --query-compute-apps=pid --format=csv,noheader) &&
            seen=$(timeout 20 nvidia-smi --query-gpu=$fields --format=csv,noheader,nounits); then
            users=$(printf '%s\n' "$users" | grep -c '^[0-9]') || true
            printf '%s\n' "$seen" | sed "s/, /,/g; s/\\[[^]]*\\]//g; s/^/$now,/; s/\$/,$users,$cpu/" >>"$samples"
            count=$((count + 1))
        fi
        if [ "$count" -gt 4000 ]; then
            awk -F , '$1 != last { n++; last = $1 } n % 2' "$samples" >"$samples.new"
            mv "$samples.new" "$samples"
            count=$(moments)
            pause=$((pause * 2))
        fi
        sleep "$pause"
    done
}

# Before the container is told to end: whether its program has a handler for SIGTERM. What that one leaves is what it
# meant to leave; any other is cut off wherever it is.
note_heed() {
    # Docker's init, if that is the first one, has the program as its child.
    said=plain
    for one in "$1" $(cat "/proc/$1/task/$1/children" 2>/dev/null); do
        case $(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/$one/status" 2>/dev/null) in
        *[4567cdef]???) said=heeds ;;
        esac
    done
    printf '%s\n' "$said" >"$heed.$$"
    mv "$heed.$$" "$heed"
}

first_process() { engine inspect --format '{{.State.Pid}}' "$run" 2>/dev/null || echo 0; }

# Waits until Google says that it takes the VM away, which is thirty seconds before it does at the most. The container
# gets twenty of them to end by itself.
lookout() {
    first=$(first_process)
    tag=0
    while :; do
        said=$(curl -sf -m 90 -D "$home/.tag" -H 'Metadata-Flavor: Google' \
            "$metadata/preempted?wait_for_change=true&timeout_sec=60&last_etag=$tag") || said=
        [ "$said" != TRUE ] || break
        # Only what is newer than the last answer is worth one; without a tag whatever there is.
        tag=$(sed -n 's/^[Ee][Tt][Aa][Gg]: *\([[:graph:]]*\).*/\1/p' "$home/.tag" 2>/dev/null) || tag=
        [ -n "$said" ] && [ -n "$tag" ] || { tag=0 && sleep 1; }
    done
    note_heed "$first"
    : >"$notice"
    engine stop -t 20 "$run" >/dev/null 2>&1 || true
}

# Beside the container, until it ends, and on a VM that is taken away until all is home: loops for those who look on,
# which must not cost the training anything.
sitting() {
    while [ -e "$home/starting" ]; do
        sleep 0.1
    done
    sample >/dev/null &
    sampler=$!
    lookout >/dev/null &
    looker=$!
    engine wait "$run" >/dev/null 2>&1 || true
    if [ -e "$notice" ]; then
        until [ -e "$home/is-home" ] || [ -z "$(find "$notice" -newermt '25 seconds ago')" ]; do
            sleep 0.2
        done
    fi
    kill "$sampler" "$looker" 2>/dev/null || true
}

# Which of the files (DEVICE:INODE, one a line, by standard input) somebody has open for writing.
written() {
    # shellcheck disable=SC2024 # the file is ours
    sudo -n find -L /proc/[0-9]*/fd -maxdepth 1 -type f -printf '%D:%i %p\n' 2>/dev/null >"$seen.open" || true
    awk 'NR == FNR { asked[$1]; next } $1 in asked' - "$seen.open" | while read -r file descriptor; do
        flags=$(sudo -n sed -n 's/^flags:[[:space:]]*//p' "${descriptor%/fd/*}/fdinfo/${descriptor##*/}" 2>/dev/null) || continue
        case $flags in
        *[123]) echo "$file" ;;
        esac
    done
}

look() {
    seen=$home/.seen.$$
    cd "$1" 2>/dev/null || return 0
    shift
    for path in "$@"; do
        [ ! -e "./$path" ] || sudo -n find "./$path" -ignore_readdir_race -type f -printf '%D:%i %s %T@ %p\0'
    done >"$seen"
    tr '\0' '\n' <"$seen" | written | tr '\n' ' '
    echo
    cat "$seen"
    rm -f "$seen" "$seen.open"
}

case $verb in
hello)
    mkdir -p "$home"
    # Traversable, so that a container's own user reaches its part; what is secret has its own mode.
    mkdir -p "$DOCKER_CONFIG"
    chmod 711 "$memory"
    echo "$home"
    ;;
startup)
    # startup LINE SECONDS: what the start-up script says; where that is LINE, as soon as it says something else.
    tenths=$(($2 * 10))
    while said=$(cat "$boot/state" 2>/dev/null || true) && [ "$said" = "$1" ] && [ "$tenths" -gt 0 ]; do
        sleep 0.1
        tenths=$((tenths - 1))
    done
    printf '%s\n' "$said"
    ;;
gpu)
    # gpu COUNT: what nvidia-smi sees.
    seen=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader)
    printf '%s\n' "$seen"
    [ "$(printf '%s\n' "$seen" | grep -c .)" -ge "$1" ] || {
        echo "nvidia-smi shows fewer than $1 GPUs" >&2
        exit 1
    }
    ;;
driver)
    nvidia-smi
    ;;
engine)
    engine version --format '{{.Server.Version}}'
    ;;
ends)
    # ends MINUTES: power off then, if nobody says otherwise.
    sudo -n shutdown -P "+$1" >/dev/null
    ;;
wall)
    wall iptables 169.254.169.254/32
    wall ip6tables fd20:ce::254/128
    ;;
reach)
    # reach HOST PORT SECONDS: the SSH host keys that answer there, if anything does.
    ssh-keyscan -T "$3" -p "$2" "$1" 2>/dev/null | grep -v '^#'
    ;;
keygen)
    key=$home/deploy-key
    [ -s "$key.pub" ] || { rm -f "$key" && ssh-keygen -q -t ed25519 -N '' -C "$run" -f "$key" </dev/null; }
    cut -d ' ' -f 1,2 "$key.pub"
    ;;
clone)
    # clone URL SHA; known hosts by standard input.
    cat >"$home/known_hosts"
    # shellcheck disable=SC2089 # git gives it to a shell, which reads the quotes
    GIT_SSH_COMMAND="ssh -F /dev/null -i '$home/deploy-key' -o IdentitiesOnly=yes -o BatchMode=yes \
-o UserKnownHostsFile='$home/known_hosts' -o GlobalKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes \
-o ConnectTimeout=15"
    # shellcheck disable=SC2090
    export GIT_SSH_COMMAND
    rm -rf "$code"
    git init -q "$code"
    cd "$code"
    git remote add origin "$1"
    git fetch -q --depth 1 origin "$2"
    git checkout -q --detach FETCH_HEAD
    [ "$(git rev-parse HEAD)" = "$2" ]
    [ ! -f .gitmodules ] || git submodule update -q --init --recursive --depth 1
    if git lfs version >/dev/null 2>&1; then
        git lfs install --local >/dev/null
        git lfs pull
    elif git grep -q 'filter=lfs' -- .gitattributes '*/.gitattributes' 2>/dev/null; then
        echo "the repository uses Git LFS, which this boot image lacks" >&2
        exit 1
    fi
    readable
    ;;
unpack)
    # unpack SHA: one commit's objects by standard input.
    rm -rf "$code"
    git init -q "$code"
    cd "$code"
    git index-pack --stdin >/dev/null
    printf '%s\n' "$1" >.git/shallow
    git checkout -q --detach "$1"
    ;;
overlay)
    # The files of the job's own checkout, as tar, over it: submodules and LFS files come this way.
    mkdir -p "$code"
    tar -x -C "$code" -f - --no-same-owner
    readable
    ;;
secrets)
    # A tar of `env`, `start` and `files/`, by standard input.
    rm -rf "$memory/run"
    mkdir -m 755 "$memory/run"
    tar -x -C "$memory/run" -f - --no-same-owner
    chmod -R go+rX "$memory/run"
    ;;
login)
    # login HOST USER; the password by standard input.
    engine login -u "$2" --password-stdin "$1" >/dev/null
    ;;
logout)
    engine logout "$1" >/dev/null 2>&1 || true
    ;;
image)
    # image IMAGE: as JSON; nothing where it is not here. What the boot is pulling is waited for, not pulled twice.
    [ ! -e "$boot/pull.lock" ] || sudo -n flock "$boot/pull.lock" true
    inspect image inspect --format '{{json .}}' "$1"
    ;;
pull)
    engine pull -q "$1" >/dev/null
    ;;
gpu-inside)
    # gpu-inside IMAGE: what nvidia-smi says in there, which NVIDIA's toolkit brings along.
    engine run --rm --gpus all --entrypoint nvidia-smi "$1"
    ;;
start)
    # start ARGUMENTS...: of docker run. One that was made but could not be started must not pass for one that ran.
    rm -f "$home/is-home" "$notice" "$heed" "$home/held"
    : >"$home/starting"
    setsid sh "$0" sit "$run" >/dev/null 2>&1 </dev/null &
    echo $! >"$home/sitting"
    # What the shutdown waits for stands before there is anything to lose.
    tenths=50
    until [ -e "$home/held" ] || [ "$tenths" -eq 0 ]; do
        sleep 0.1
        tenths=$((tenths - 1))
    done
    engine run -d "$@" >/dev/null || {
        rm -f "$home/starting"
        engine rm "$run" >/dev/null 2>&1 || true
        exit 1
    }
    rm -f "$home/starting"
    ;;
sit)
    if command -v systemd-inhibit >/dev/null; then
        # Google's notice comes together with its order to shut down: that waits until this is over.
        sitting | sudo -n systemd-inhibit --what=shutdown --mode=delay --who=glgpu --why='a training ends' \
            sh -c ': >"$1"; exec cat' sh "$home/held"
    else
        : >"$home/held"
        sitting
    fi
    ;;
samples)
    # What was sampled of the GPUs.
    cat "$samples" 2>/dev/null || true
    ;;
sampling)
    # The same, and what comes, until the container ends.
    exec tail -n +1 -F --pid="$(cat "$home/sitting")" "$samples" 2>/dev/null
    ;;
ending)
    # What is known of the training's end: for how many seconds it has been known that Google takes the VM away (`no`: it
    # does not), and what the program made of SIGTERM: it `heeds` it or is `plain`; nothing where it was not told to end.
    age=no
    [ ! -e "$notice" ] || age=$(($(date +%s) - $(stat -c %Y "$notice")))
    printf '%s %s\n' "$age" "$(cat "$heed" 2>/dev/null || true)"
    ;;
look)
    # look FOLDER PATH...: a line with what is open for writing, then DEVICE:INODE, SIZE, TIME and name of every file
    # below the paths, NUL-terminated.
    look "$@"
    ;;
keep)
    # keep FOLDER PATH...: the files named by standard input, NUL-terminated, as they are now: what takes their names
    # later does not take these away, nor does a program that removes them. Answers like `look`.
    sudo -n rm -rf "$kept"
    mkdir "$kept"
    cd "$1"
    shift
    sudo -n xargs -0 -r cp -l --parents -t "$kept" -- 2>/dev/null || true
    look "$kept" "$@"
    ;;
put)
    # put FOLDER PATH...: files by standard input, as tar; whoever the container runs as may change them.
    mkdir -p "$1"
    cd "$1"
    shift
    tar -x -f - --no-same-owner
    for path in "$@"; do
        [ ! -e "./$path" ] || chmod -R u+rwX,go+rwX "./$path"
    done
    ;;
state)
    # The container's state as JSON; nothing where there is none.
    inspect inspect --format '{{json .State}}' "$run"
    ;;
logs | logged)
    # logs SINCE: the container's output from there on, to its end. logged SINCE: what there is of it by now.
    since=$1
    set -- --timestamps "$run"
    [ -z "$since" ] || set -- --since "$since" "$@"
    [ "$verb" = logged ] || set -- -f "$@"
    together sudo -n docker logs "$@"
    ;;
stop)
    # stop SECONDS
    note_heed "$(first_process)"
    engine stop -t "$1" "$run" >/dev/null
    ;;
end)
    # end SECONDS: the same, and nobody waits for it.
    note_heed "$(first_process)"
    setsid sudo -n docker stop -t "$1" "$run" >/dev/null 2>&1 </dev/null &
    ;;
sums)
    # sums BASE PATH...: SHA-256 of every file below the paths, NUL-terminated.
    cd "$1"
    shift
    each_file "$@" | sudo -n xargs -0 -r sha256sum -z --
    ;;
choose)
    # The files that `send` sends, NUL-terminated, by standard input.
    cat >"$memory/chosen"
    ;;
send)
    # send BASE PATH...: the chosen files, and every folder and link below the paths, as tar.
    cd "$1"
    shift
    send "$@"
    ;;
send-all)
    # send-all BASE PATH...: every file below the paths, chosen and sent like that, and behind the archive what `sums`
    # tells of them. They are summed up while they are sent: what both read comes from the disk once, as long as the
    # memory holds what one of them is ahead.
    cd "$1"
    shift
    each_file "$@" >"$memory/chosen"
    # shellcheck disable=SC2024 # both files are ours
    sudo -n xargs -0 -r sha256sum -z -- <"$memory/chosen" >"$memory/sums" &
    summing=$!
    send "$@"
    wait "$summing"
    cat "$memory/sums"
    ;;
keeper)
    # What sees a detached training home, by standard input: vm/keeper.sh. Moved into place, because a watch that has
    # just been left may be reading the one that is there.
    cat >"$home/.keeper.$$"
    mv "$home/.keeper.$$" "$home/keeper"
    ;;
see-home)
    # see-home VERB WORDS...: it is asked for something, as root.
    verb=$1
    shift
    exec sudo -n env GLGPU_ROOT="${GLGPU_ROOT:-}" sh "$home/keeper" "$verb" "$run" "$home" "$@"
    ;;
leave)
    # leave WATCH WORDS...: its long watch begins, which outlives us.
    setsid sh "$0" see-home "$run" "$@" </dev/null >/dev/null 2>>"$home/keeper.log" &
    ;;
written)
    # Which of the files (DEVICE:INODE, one a line, by standard input) somebody has open for writing.
    seen=$home/.written
    written
    rm -f "$seen.open"
    ;;
notebook-take)
    # What serves the notebook, as tar by standard input, and in memory what opens it. The token is made here, and is the
    # login user's alone: nobody else gets through the folder above what the container sees.
    mkdir -p "$home/notebook" "$door/runtime"
    tar -x -C "$home/notebook" -f - --no-same-owner
    chmod -R go+rX "$home/notebook"
    chmod 700 "$notebook"
    [ -s "$notebook/token" ] ||
        head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$notebook/token"
    cp "$notebook/token" "$door/token"
    chmod 644 "$door/token"
    chmod 777 "$door" "$door/runtime"
    ;;
notebook-mark)
    # From here on what changes is somebody's work.
    [ -e "$home/checked-out" ] || : >"$home/checked-out"
    ;;
notebook-work)
    # Files by standard input, as tar, over the code; whoever the container runs as may change them. No other file is
    # touched: it would count as work.
    umask 0
    tar -x -p -C "$code" -f - --no-same-owner
    ;;
notebook-jupyter)
    # notebook-jupyter IMAGE PYTHON: `own` where the image has a JupyterLab that will do, else `layer`, made of the
    # pinned packages beside the image's. Settings of pip's come by standard input, for it alone.
    cat >"$notebook/pip"
    layer=$home/notebook/layer
    if [ ! -e "$layer/complete" ]; then
        engine run --rm --entrypoint "$2" "$1" -c \
            'import jupyterlab, jupyter_server; assert int(jupyterlab.__version__.split(".")[0]) > 2' >/dev/null 2>&1 && {
            echo own
            exit 0
        }
        rm -rf "$layer"
        mkdir "$layer"
        chmod 777 "$layer"
        engine run --rm --env-file "$notebook/pip" -v "$home/notebook:$home/notebook" --entrypoint "$2" "$1" \
            -m pip install --quiet --no-input --no-cache-dir --disable-pip-version-check --require-hashes --no-deps \
            --only-binary :all: --target "$layer" -r "$home/notebook/requirements.txt" >&2
        : >"$layer/complete"
    fi
    echo layer
    ;;
notebook-answers)
    # notebook-answers PYTHON: whether JupyterLab answers, with its token.
    engine exec "$run" "$1" "$home/notebook/glgpu_notebook.py" ask "$door" >/dev/null 2>&1 && echo yes || echo no
    ;;
notebook-until)
    # notebook-until TIME: the soft end, which the container sees, and on which it has no say.
    case $1 in
    *[!0-9]* | '')
        echo "$1 is no Unix time" >&2
        exit 64
        ;;
    esac
    for file in "$home/until" "$door/until"; do
        printf '%s\n' "$1" >"$file.new"
        chmod 644 "$file.new"
        mv "$file.new" "$file"
    done
    ;;
notebook-state)
    # What is known of it, as src/glgpu/notebook.py reads it; nothing where there is none.
    [ -e "$notebook/token" ] || exit 0
    now=$(date +%s)
    # shellcheck disable=SC2046 # numbers
    set -- $(tr -cd '0-9 ' <"$door/seen" 2>/dev/null | cut -c 1-60)
    answers=false
    busy=false
    [ "${1:-0}" -le $((now - 10)) ] || answers=true
    [ "${3:-0}" != 1 ] || busy=true
    used=$(cat "$home/used" 2>/dev/null || echo "${2:-$now}")
    [ "${2:-0}" -le "$used" ] || used=$2
    idle=$((now - used))
    [ "$busy" = false ] && [ "$idle" -ge 0 ] || idle=0
    printf '{"answers":%s,"busy":%s,"idle_seconds":%s,"soft_end":%s,"saved":%s}\n' "$answers" "$busy" "$idle" \
        "$(cat "$home/until" 2>/dev/null || echo 0)" "$(cat "$home/saved" 2>/dev/null || echo null)"
    ;;
notebook-token)
    cat "$notebook/token"
    ;;
is-home)
    [ -e "$home/is-home" ] && echo yes || echo no
    ;;
set-home)
    : >"$home/is-home"
    ;;
wipe)
    # The run is over here: container and secrets go, whatever happens to the VM.
    engine rm -f "$run" >/dev/null 2>&1 || true
    sudo -n rm -rf "$memory"
    sudo -n rm -rf "$kept"
    rm -f "$home/deploy-key" "$home/deploy-key.pub"
    ;;
*)
    echo "unknown verb $verb" >&2
    exit 64
    ;;
esac
