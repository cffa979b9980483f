#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Starts the testbed, installs Berth, makes one volume in each mode, writes it,
# and reads it back in another pod. The cluster stays up.
set -euo pipefail
cd "$(dirname "$0")/.."

testbed=${TESTBED:-build/testbed}
nodes=${NODES:-2}
image=${IMAGE:-build/berth-image.tar}
modes=(lvm device hostpath)
begun=$SECONDS

number=0 total=6 started=$SECONDS
step() {
  number=$((number + 1))
  started=$SECONDS
  printf '\n==> [%d/%d] %s\n' "$number" "$total" "$*"
}
took() { printf '    %d s\n' $((SECONDS - started)); }

kubectl() { "$testbed" kubectl "$@"; }
show() {
  printf '\n$ kubectl %s\n' "$*"
  kubectl "$@"
}

# explain shows what a user would look at when a pod does not come up.
explain() {
  kubectl --namespace demo get pvc,pods -o wide || true
  kubectl get localvolumes,pools,blockdevices -o wide || true
  kubectl --namespace demo get events --sort-by=.lastTimestamp || true
  kubectl --namespace berth-system logs daemonset/berth-node-agent --tail=40 || true
  echo "make demo failed; the cluster is up for a look ($testbed kubectl ...), make testbed-down stops it"
}

# finish waits until a pod has ended well.
finish() {
  if ! kubectl --namespace demo wait "pod/$1" --for='jsonpath={.status.phase}=Succeeded' --timeout=5m >/dev/null; then
    explain >&2
    exit 1
  fi
}

# said is the checksum that a pod reported for a mode when it ended.
said() {
  kubectl --namespace demo get pod "$1" -o 'jsonpath={.status.containerStatuses[0].state.terminated.message}' |
    awk -v mode="$2" '$1 == mode { print $2 }'
}

step "build the testbed's command and Berth's image"
make --no-print-directory build-testbed build-image
took

step "start a cluster of $nodes nodes (the first time it builds Kubernetes and a node image)"
"$testbed" up --nodes "$nodes" --image "$image"
took

step "install Berth"
hack/install.sh
took

step "what Berth found, and the pools it made"
show get blockdevices -o wide
show get pools
show get storageclasses
took

step "a claim in each mode, and a pod that writes to all three"
kubectl --namespace demo delete pods --all --ignore-not-found >/dev/null
kubectl apply --filename hack/demo/claims.yaml >/dev/null
kubectl apply --filename hack/demo/writer.yaml >/dev/null
finish writer
show --namespace demo get pvc
show get localvolumes -o wide
took

step "the same bytes in another pod"
declare -A wrote
for mode in "${modes[@]}"; do wrote[$mode]=$(said writer "$mode"); done
kubectl --namespace demo delete pod writer --wait=false >/dev/null
kubectl apply --filename hack/demo/reader.yaml >/dev/null
finish reader
node=$(kubectl --namespace demo get pod reader -o 'jsonpath={.spec.nodeName}')
differ=0
printf '    %-10s %-10s %-20s %-20s\n' MODE NODE WRITTEN READ
for mode in "${modes[@]}"; do
  read=$(said reader "$mode")
  verdict=same
  if [[ -z $read || $read != "${wrote[$mode]}" ]]; then
    verdict=DIFFERENT
    differ=1
  fi
  printf '    %-10s %-10s %-20s %-20s %s\n' "$mode" "$node" "${wrote[$mode]:0:16}" "${read:0:16}" "$verdict"
done
took
if ((differ)); then
  echo "what was read is not what was written" >&2
  exit 1
fi

cat <<END

The cluster is up, $((SECONDS - begun)) s after you asked for it. Go on with
    $testbed kubectl get berth -o wide          every object of Berth's
    $testbed kubectl --namespace demo get pvc   the claims of this demo
    $testbed exec node1 lsblk                   a shell command on a node
    docs/tutorials/first-volumes.md             a walk through all of it
and stop it with
    make testbed-down
END
