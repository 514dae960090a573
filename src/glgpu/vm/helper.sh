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
    rm -f "$home/is-home"
    engine run -d "$@" >/dev/null || {
        engine rm "$run" >/dev/null 2>&1 || true
        exit 1
    }
    setsid sh "$0" sit "$run" >/dev/null 2>&1 </dev/null &
    echo $! >"$home/sitting"
    ;;
sit)
    # Beside the container, until it ends: loops for those who look on, which must not cost the training anything.
    sample &
    sampler=$!
    engine wait "$run" >/dev/null 2>&1 || true
    kill "$sampler" 2>/dev/null || true
    ;;
samples)
    # What was sampled of the GPUs.
    cat "$samples" 2>/dev/null || true
    ;;
sampling)
    # The same, and what comes, until the container ends.
    exec tail -n +1 -F --pid="$(cat "$home/sitting")" "$samples" 2>/dev/null
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
    exec sudo -n docker logs "$@" 2>&1
    ;;
stop)
    # stop SECONDS
    engine stop -t "$1" "$run" >/dev/null
    ;;
end)
    # end SECONDS: the same, and nobody waits for it.
    setsid sudo -n docker stop -t "$1" "$run" >/dev/null 2>&1 </dev/null &
    ;;
sums)
    # sums BASE PATH...: SHA-256 of every file below the paths, NUL-terminated.
    cd "$1"
    shift
    for path in "$@"; do
        [ ! -e "./$path" ] || sudo -n find "./$path" -type f -print0
    done | sudo -n xargs -0 -r sha256sum -z --
    ;;
choose)
    # The files that `send` sends, NUL-terminated, by standard input.
    cat >"$home/.chosen"
    ;;
send)
    # send BASE PATH...: the chosen files, and every folder and link below the paths, as tar; root reads them, for the
    # container's files are root's.
    cd "$1"
    shift
    {
        cat "$home/.chosen"
        for path in "$@"; do
            [ ! -e "./$path" ] || sudo -n find "./$path" ! -type f -print0
        done
    } | sudo -n tar -c -f - --format=pax --hard-dereference --no-recursion --null --verbatim-files-from -T -
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
    rm -f "$home/deploy-key" "$home/deploy-key.pub"
    ;;
*)
    echo "unknown verb $verb" >&2
    exit 64
    ;;
esac
