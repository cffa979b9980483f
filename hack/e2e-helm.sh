#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Installs the chart on the testbed as docs/guides/install.md says, makes a volume in each mode,
# upgrades, uninstalls and installs it again while pods run, and has it take over from kubectl.
# What was written must be read again each time. A testbed that it starts it takes down again;
# on one that was up it leaves Berth as hack/install.sh makes it.
set -euo pipefail
cd "$(dirname "$0")/.."

testbed=${TESTBED:-build/testbed}
image=${IMAGE:-build/berth-image.tar}
namespace=berth-system
modes=(lvm device hostpath)
helm() { "$testbed" run -- build/tools/helm --namespace "$namespace" "$@"; }

total=8 begun=$SECONDS
# shellcheck source=hack/progress.sh
source hack/progress.sh

# rolled_out waits for the pods of both commands.
rolled_out() {
  kubectl --namespace "$namespace" rollout status daemonset/berth-node-agent --timeout=5m
  kubectl --namespace "$namespace" rollout status deployment/berth-provisioner --timeout=5m
}

# ended waits until a pod has ended well.
ended() {
  kubectl --namespace demo wait "pod/$1" --for='jsonpath={.status.phase}=Succeeded' --timeout=5m >/dev/null || fail "pod $1 did not end well"
}

# said is what a pod has reported: a mode and a checksum in each line.
said() {
  kubectl --namespace demo get pod "$1" -o 'jsonpath={.status.containerStatuses[0].state.terminated.message}' | awk '{ print $1, $2 }'
}

# same has a new pod read what the first wrote.
same() {
  kubectl --namespace demo delete pod reader --ignore-not-found >/dev/null
  kubectl apply --filename hack/demo/reader.yaml >/dev/null
  ended reader
  diff <(said writer) <(said reader) || fail "what was read is not what was written"
  echo "    read again, the same: $(said reader | wc -l) volumes"
}

# volumes are the LocalVolumes and what is known of each that must not change.
volumes() {
  kubectl get localvolumes -o 'jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.spec.nodeName}{"\n"}{end}' | sort
}

step "the testbed, helm and the image"
make --no-print-directory build-testbed build-image helm
if ! "$testbed" status >/dev/null 2>&1; then
  trap '"$testbed" down' EXIT
  trap 'exit 130' INT TERM
  "$testbed" up --nodes "${NODES:-2}"
fi
if [[ -n $(kubectl get daemonsets --namespace "$namespace" --ignore-not-found -o name) ]]; then
  fail "Berth is installed already: this begins with a cluster that has none (make testbed-down)"
fi
"$testbed" load "$image"
took

step "helm install"
kubectl create namespace "$namespace"
kubectl label namespace "$namespace" pod-security.kubernetes.io/enforce=privileged
helm install berth deploy/chart --set snapshots.enabled=true --set snapshots.groups=true
rolled_out
kubectl apply --kustomize deploy/examples >/dev/null
for node in $(kubectl get nodes -o 'jsonpath={.items[*].metadata.name}'); do
  for pool in fast dirs; do
    kubectl wait "pools/$pool-$node" --for=create --timeout=2m >/dev/null
    kubectl wait "pools/$pool-$node" --for=condition=Ready --timeout=2m >/dev/null
  done
done
kubectl get pools
took

step "a claim in each mode, written and read back"
kubectl apply --filename hack/demo/claims.yaml --filename hack/demo/writer.yaml >/dev/null
ended writer
same
before=$(volumes)
[[ $(wc -l <<<"$before") == "${#modes[@]}" ]] || fail "there are not ${#modes[@]} LocalVolumes"
took

step "helm upgrade with another value, while a pod has the volumes"
kubectl apply --filename hack/demo/holder.yaml >/dev/null
kubectl --namespace demo wait pod/holder --for=condition=Ready --timeout=5m >/dev/null || fail "pod holder does not run"
helm upgrade berth deploy/chart --set snapshots.enabled=true --set snapshots.groups=true --set log.level=debug >/dev/null
rolled_out
kubectl --namespace "$namespace" get daemonset berth-node-agent -o 'jsonpath={.spec.template.spec.containers[0].args}' | tee /dev/stderr | grep -q debug || fail "the value is not there"
echo
took

step "helm uninstall"
helm uninstall berth
kubectl --namespace "$namespace" wait pods --all --for=delete --timeout=2m >/dev/null
[[ $(volumes) == "$before" ]] || fail "LocalVolumes are not those of before"
for mode in "${modes[@]}"; do
  [[ $(kubectl --namespace demo get pvc "$mode" -o 'jsonpath={.status.phase}') == Bound ]] || fail "claim $mode is not Bound"
  kubectl --namespace demo exec holder -- sh -c "sha256sum <'/data/$mode/content'" >/dev/null || fail "pod holder has lost $mode"
done
echo "    the claims are Bound, and the pod reads its volumes"
took

step "helm install again"
helm install berth deploy/chart --set snapshots.enabled=true --set snapshots.groups=true >/dev/null
rolled_out
kubectl --namespace demo delete pod holder --grace-period=1 >/dev/null
same
[[ $(volumes) == "$before" ]] || fail "LocalVolumes are not those of before"
took

step "away, installed by kubectl, and taken over by helm in place"
helm uninstall berth >/dev/null
kubectl --namespace "$namespace" wait pods --all --for=delete --timeout=2m >/dev/null
kubectl apply --kustomize deploy/group-snapshots >/dev/null
rolled_out
helm install berth deploy/chart --take-ownership --force-conflicts --set snapshots.enabled=true --set snapshots.groups=true >/dev/null
rolled_out
same
[[ $(volumes) == "$before" ]] || fail "LocalVolumes are not those of before"
took

step "the claims are deleted, and Berth is kubectl's again"
kubectl delete namespace demo --timeout=3m >/dev/null
kubectl wait localvolumes --all --for=delete --timeout=2m >/dev/null || fail "volumes are left"
# Without its own record helm does not know the release any more, and deletes nothing.
kubectl --namespace "$namespace" delete secrets --selector owner=helm >/dev/null
IMAGE=$image hack/install.sh
took
echo "all steps passed in $((SECONDS - begun)) s"
