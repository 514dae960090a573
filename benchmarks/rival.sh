#!/bin/bash
# The rival of life_cycle.py: one job that trains on a GPU VM of its own, with curl and one SSH connection.
#   rival.sh NAME IMAGE COMMAND ZONE...       PULL=boot: the VM begins to pull the image as it boots
# It trusts the VM's host key on first use, and a kill -9 leaves the VM to its maxRunDuration.
set -euo pipefail
name=$1 image=$2 command=$3
shift 3
url=$GLGPU_COMPUTE_ENDPOINT/compute/v1/projects/$GLGPU_PROJECT/zones
work=$(mktemp -d)
printf 'Authorization: Bearer %s\n' "$GOOGLE_OAUTH_ACCESS_TOKEN" >"$work/header"
ssh-keygen -q -t ed25519 -N '' -f "$work/key"

api() { curl -sS --fail-with-body -H "@$work/header" -H 'Content-Type: application/json' -X "$@"; }
field() { sed -n "s/^ *\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1; }
vm() { ssh -F none -S "$work/socket" vm "$@"; }

# finished ZONE ANSWER: wait for the operation; fails where it did.
finished() {
  local operation answer=$2
  operation=$(field name <<<"$answer")
  until [[ $answer == *'"status": "DONE"'* ]]; do
    answer=$(api POST "$url/$1/operations/$operation/wait" -d '') || return
  done
  [[ $answer != *'"error"'* ]]
}

create() {
  local answer
  answer=$(api POST "$url/$1/instances" -d @- <<BODY
{"name": "$name", "machineType": "zones/$1/machineTypes/g2-standard-4",
 "disks": [{"boot": true, "autoDelete": true, "initializeParams": {"diskSizeGb": "100",
  "diskType": "zones/$1/diskTypes/pd-balanced", "sourceImage":
  "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204-nvidia-580"}}],
 "networkInterfaces": [{"network": "global/networks/default", "accessConfigs": [{"type": "ONE_TO_ONE_NAT"}]}],
 "scheduling": {"onHostMaintenance": "TERMINATE", "provisioningModel": "SPOT", "automaticRestart": false,
  "maxRunDuration": {"seconds": "7200"}, "instanceTerminationAction": "DELETE"},
 "metadata": {"items": [{"key": "ssh-keys", "value": "rival:$(cut -d ' ' -f 1,2 "$work/key.pub")"},
  {"key": "startup-script", "value": "#!/bin/sh\n${PULL:+docker pull -q $image}"}]}}
BODY
) && finished "$1" "$answer" && return
  echo "$answer" >&2
  return 1
}

destroy() {
  [ ! -S "$work/socket" ] || ssh -F none -S "$work/socket" -O exit vm 2>/dev/null
  [ -z "${zone-}" ] || finished "$zone" "$(api DELETE "$url/$zone/instances/$name")"
  rm -rf "$work"
}
trap destroy EXIT

for zone in "$@" ''; do
  [ -n "$zone" ] || { echo "no zone has a VM" >&2; exit 10; }
  create "$zone" && break
  echo "$zone: no VM"
done
instance=$(api GET "$url/$zone/instances/$name")
port=$(sed -n '/"glgpu-ssh-port"/,/}/p' <<<"$instance" | field value) # the stand-ins' VMs share one address
until ssh -F none -fNM -S "$work/socket" -i "$work/key" -p "${port:-22}" -o ControlPersist=yes -o IdentitiesOnly=yes \
  -o UserKnownHostsFile="$work/known" -o StrictHostKeyChecking=accept-new -o BatchMode=yes -o ConnectTimeout=5 \
  "rival@$(field natIP <<<"$instance")" 2>/dev/null; do
  sleep 0.2
done
git archive HEAD | vm 'mkdir code && tar -x -C code'
vm "until nvidia-smi -L >/dev/null; do sleep 1; done && sudo docker pull -q $image &&
  sudo docker run -d --init --name $name --gpus all --ipc=host -v \$HOME/code:\$HOME/code -w \$HOME/code $image $command"
vm "sudo docker logs -f $name"
[ "$(vm "sudo docker wait $name")" = 0 ]
vm 'sudo tar -c -C code weights' | tar -x
