#!/bin/sh
# What a VM of glgpu runs as root at each boot: it sees to Docker, to NVIDIA's container toolkit and to a driver that
# answers, and begins to pull the training image. It installs only what is missing, never fails the boot, and says how
# far it is in the file /run/glgpu/state, in the guest attribute glgpu/state, and by its output on the serial console:
# STATE STEP MESSAGE, where the state is working, ready or failed. Nothing in here is secret.
set -u
umask 022
root=${GLGPU_ROOT:-}
folder=$root/run/glgpu
metadata=http://metadata.google.internal/computeMetadata/v1/instance
# No account of root's: a private image is left to the job, which logs in for it.
export DOCKER_CONFIG="$folder/docker" DEBIAN_FRONTEND=noninteractive
driver_installer=$root/opt/deeplearning/install-driver.sh
driver_tries=36

say() { printf 'glgpu: %s\n' "$*"; }

has() { command -v "$1" >/dev/null 2>&1; }

# One line of what a program said, fit to be shown: its first, or its last.
first() { printf '%s\n' "$1" | tr -cd '[:print:]\n' | grep . | head -n 1 | cut -c 1-300; }
last() { printf '%s\n' "$1" | tr -cd '[:print:]\n' | grep . | tail -n 1 | cut -c 1-300; }

report() {
    # report STATE STEP MESSAGE
    say "$*"
    printf '%s\n' "$*" >"$folder/state.new" && mv "$folder/state.new" "$folder/state"
    curl -sf -m 5 -o /dev/null -X PUT -H 'Metadata-Flavor: Google' --data-raw "$*" \
        "$metadata/guest-attributes/glgpu/state" || true
}

broken() {
    # broken STEP MESSAGE: the VM is of no use; whoever waits for it hears so now.
    report failed "$@"
    exit 0
}

host_key() {
    # The copy for those whose policy keeps them from reading guest attributes. Whoever else wrote such a line would
    # have to be root, and no container has run yet.
    if read -r kind key _ 2>/dev/null <"$root/etc/ssh/ssh_host_ed25519_key.pub"; then
        say "host key: $kind $key"
    fi
}

keep_packages() {
    # An upgrade replaces the driver's libraries under a running training, which then fails with a version mismatch.
    if [ -d "$root/etc/apt/apt.conf.d" ]; then
        echo 'APT::Periodic::Enable "0";' >"$root/etc/apt/apt.conf.d/99glgpu"
    fi
    has systemctl || return 0
    systemctl mask --now apt-daily.timer apt-daily-upgrade.timer >/dev/null 2>&1
    # Without waiting: an upgrade that is at work ends in good order, and apt-get waits for its lock.
    systemctl stop --no-block apt-daily.service apt-daily-upgrade.service unattended-upgrades.service \
        >/dev/null 2>&1
}

let_trainings_end() {
    # Google takes a Spot VM away half a minute after it has pressed the power button. What has to be done by then may
    # delay the shutdown, five seconds by default (logind.conf(5)).
    has systemd-inhibit || return 0
    settings=$root/etc/systemd/logind.conf.d
    mkdir -p "$settings" && printf '[Login]\nInhibitDelayMaxSec=27\n' >"$settings/glgpu.conf" &&
        systemctl restart systemd-logind >/dev/null 2>&1
}

install() {
    # install PACKAGE...
    has apt-get || {
        echo 'this boot image has no apt-get'
        return 1
    }
    # The package lists have a lock of their own, for which apt-get does not wait.
    for _ in 1 2 3 4 5 6; do
        apt_get update && apt_get install --no-install-recommends "$@" && return 0
        sleep 10
    done
    return 1
}

apt_get() { apt-get -q -y -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 "$@" 2>&1; }

answers() {
    # Whether Docker's engine answers, now or within a minute.
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do
        docker info >/dev/null 2>&1 && return 0
        systemctl start docker
        sleep 5
    done
    return 1
}

see_to_docker() {
    if ! has docker; then
        report working docker 'installing Docker, which the boot image lacks'
        said=$(install docker.io ca-certificates) ||
            broken docker "Docker is not in the boot image and could not be installed: $(last "$said")"
    fi
    answers || broken docker "Docker's engine does not answer: $(last "$(docker info 2>&1)")"
}

# NVIDIA's own repository of its toolkit, as its installation guide has it:
# https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html
add_repository() {
    site=https://nvidia.github.io/libnvidia-container
    key=$root/usr/share/keyrings/nvidia-container-toolkit.asc
    curl -fsSL -m 60 --retry 3 -o "$key" "$site/gpgkey" || return 1
    # apt-get puts the architecture in.
    # shellcheck disable=SC2016
    printf 'deb [signed-by=%s] %s/stable/deb/$(ARCH) /\n' "$key" "$site" \
        >"$root/etc/apt/sources.list.d/nvidia-container-toolkit.list"
}

see_to_toolkit() {
    if ! has nvidia-ctk && ! has nvidia-container-runtime-hook; then
        report working toolkit "installing NVIDIA's container toolkit, which the boot image lacks"
        said=$({ apt-cache show nvidia-container-toolkit >/dev/null 2>&1 || add_repository; } 2>&1 &&
            install nvidia-container-toolkit) ||
            broken toolkit "NVIDIA's container toolkit is not in the boot image and could not be installed: $(last "$said")"
    fi
    has nvidia-ctk || return 0
    case $(docker info --format '{{json .Runtimes}}' 2>/dev/null) in
    *'"nvidia"'*) return 0 ;;
    esac
    said=$(nvidia-ctk runtime configure --runtime=docker 2>&1 && systemctl restart docker 2>&1) ||
        broken toolkit "Docker cannot be told of NVIDIA's container toolkit: $(last "$said")"
    answers || broken toolkit "Docker's engine does not answer any more: $(last "$(docker info 2>&1)")"
}

pull() {
    # Beside the rest of the boot. Whoever needs the image waits for this lock; a private one fails here, harmlessly.
    [ -n "$image" ] || return 0
    say "pulling $image"
    flock "$folder/pull.lock" docker pull -q -- "$image" >"$folder/pull.log" 2>&1 &
}

see_to_driver() {
    tries=0
    until said=$(timeout 60 nvidia-smi -L 2>&1); do
        # Older Deep Learning VM images bring the driver along, not yet installed.
        if [ -x "$driver_installer" ] && [ "$tries" -eq 2 ]; then
            report working driver 'installing the NVIDIA driver that the boot image brings along'
            "$driver_installer" >"$folder/driver.log" 2>&1 || say "$(last "$(cat "$folder/driver.log")")"
        elif [ "$tries" -eq 0 ]; then
            report working driver 'waiting for the NVIDIA driver'
        fi
        if ! has nvidia-smi && { [ ! -x "$driver_installer" ] || [ "$tries" -gt 2 ]; }; then
            broken driver 'the boot image has no NVIDIA driver: there is no nvidia-smi'
        fi
        tries=$((tries + 1))
        case $said in
        # No waiting mends this one.
        *'version mismatch'*) tries=$((driver_tries + 1)) ;;
        esac
        if [ "$tries" -gt "$driver_tries" ]; then
            # The kernel's own word says more: that this GPU is too old for the driver, for example.
            kernel=$(dmesg 2>/dev/null | sed -n 's/^.*NVRM: *//p' | grep -v '^loading NVIDIA' | head -n 4 | tr '\n' ' ')
            broken driver "the NVIDIA driver does not answer: $(first "$said")${kernel:+; the kernel: $(first "$kernel")}"
        fi
        sleep 5
    done
}

mkdir -p "$DOCKER_CONFIG"
host_key
report working start 'the start-up script begins'
keep_packages
let_trainings_end
# Without it nobody hears of anything, and nothing is heard.
has curl || install curl ca-certificates || say 'curl is missing and cannot be installed'
# GPUS IMAGE, in one item; neither where the VM was not brought up by glgpu.
read -r gpus image <<END
$(curl -sf -m 10 --retry 3 -H 'Metadata-Flavor: Google' "$metadata/attributes/glgpu-startup")
END
see_to_docker
[ "${gpus:-0}" = 0 ] || see_to_toolkit
pull
[ "${gpus:-0}" = 0 ] || see_to_driver
report ready boot 'the VM has what a training needs'
wait
[ ! -s "$folder/pull.log" ] || say "pull: $(last "$(cat "$folder/pull.log")")"
exit 0
