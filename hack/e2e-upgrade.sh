#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Upgrades Berth on the testbed from an older version to this tree and back, while a pod writes
# to a volume in each mode:
#
#   hack/e2e-upgrade.sh v0.1.0        or any other commit
#
# On the way an agent of each version runs beside a provisioner of the other, and volumes are
# made by both. What was written must be read again. It begins with a testbed without Berth, or
# none; a testbed that it starts it takes down again.
set -euo pipefail
cd "$(dirname "$0")/.."

old=${1:?which version to upgrade from, as a commit}
testbed=${TESTBED:-build/testbed}
namespace=berth-system
name=ghcr.io/berth-dev/berth
source=build/upgrade/source

total=7 begun=$SECONDS mine=false
# shellcheck source=hack/progress.sh
source hack/progress.sh
clean() {
  git worktree remove --force "$source" 2>/dev/null || true
  if "$mine"; then "$testbed" down; fi
}
trap clean EXIT
trap 'exit 130' INT TERM

# version installs one of both: $1 is old or new, $2 how agents are replaced.
version() {
  local base=../../../deploy/base
  if [[ $1 == old ]]; then base=../source/deploy/base; fi
  mkdir -p "build/upgrade/$1"
  cat >"build/upgrade/$1/kustomization.yaml" <<END
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [$base]
images: [{name: $name, newTag: $1}]
patches:
  - target: {kind: DaemonSet, name: berth-node-agent}
    patch: |-
      apiVersion: apps/v1
      kind: DaemonSet
      metadata: {name: berth-node-agent}
      spec: {updateStrategy: {\$patch: replace, type: OnDelete}}
END
  kubectl apply --kustomize "build/upgrade/$1" >/dev/null
  kubectl --namespace "$namespace" rollout status deployment/berth-provisioner --timeout=5m
}

# agent replaces the agent of a node by one of the version that is installed.
agent() {
  local pod
  pod=$(kubectl --namespace "$namespace" get pods --field-selector "spec.nodeName=$1" --selector app.kubernetes.io/name=berth-node-agent -o name)
  kubectl --namespace "$namespace" delete "$pod" >/dev/null
  agent_ready "$1" "$2"
}

# agent_ready waits for the agent of a node to be ready, and says its image.
agent_ready() {
  local image
  for _ in $(seq 120); do
    image=$(kubectl --namespace "$namespace" get pods --field-selector "spec.nodeName=$1" --selector app.kubernetes.io/name=berth-node-agent \
      -o 'jsonpath={range .items[?(@.status.containerStatuses[0].ready==true)]}{.spec.containers[0].image}{end}')
    if [[ $image == "$name:$2" ]]; then
      echo "    $1: agent $2"
      return
    fi
    sleep 1
  done
  fail "the agent of $1 is not ready with $name:$2"
}

# more makes a volume of each class that needs no whole disk on a node, and removes it.
more() {
  local class
  for class in berth-lvm berth-hostpath; do
    kubectl apply --filename - >/dev/null <<END
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: more, namespace: demo}
spec:
  storageClassName: $class
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 64Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: more, namespace: demo}
spec:
  restartPolicy: Never
  nodeSelector: {kubernetes.io/hostname: $1}
  containers:
    - name: more
      image: localhost/busybox:1
      command: [sh, -euc, "echo more > /data/more; sync; grep -q more /data/more"]
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: more}}]
END
    kubectl --namespace demo wait pod/more --for='jsonpath={.status.phase}=Succeeded' --timeout=3m >/dev/null || fail "a volume of $class on $1 was not used"
    kubectl --namespace demo delete pod/more pvc/more --timeout=2m >/dev/null
  done
  echo "    $1: volumes made, used and deleted"
}

# writes fails unless the pod that writes has gone on.
writes() {
  [[ $(kubectl --namespace demo get pod endless -o 'jsonpath={.status.phase}') == Running ]] ||
    fail "the pod that writes has ended: $(kubectl --namespace demo get pod endless -o 'jsonpath={.status.containerStatuses[0].state}')"
}

step "images of $old and of this tree"
rm -rf build/upgrade
git worktree prune
git worktree add --detach "$source" "$old" >/dev/null
make --no-print-directory build-testbed
go run ./hack/image -reference "$name:new" -output build/upgrade/new.tar
(cd "$source" && go run ./hack/image -reference "$name:old" -output ../old.tar)
took

step "the testbed, with $old"
if ! "$testbed" status >/dev/null 2>&1; then
  mine=true
  "$testbed" up --nodes 2
fi
if [[ -n $(kubectl get daemonsets --namespace "$namespace" --ignore-not-found -o name) ]]; then
  fail "Berth is installed already: this begins with a cluster that has none (make testbed-down)"
fi
"$testbed" load build/upgrade/old.tar
"$testbed" load build/upgrade/new.tar
version old
kubectl apply --kustomize "$source/deploy/examples" >/dev/null
for node in node1 node2; do
  agent_ready "$node" old
  for pool in fast dirs; do
    kubectl wait "pools/$pool-$node" --for=create --timeout=2m >/dev/null
    kubectl wait "pools/$pool-$node" --for=condition=Ready --timeout=2m >/dev/null
  done
done
took

step "a pod writes to a volume in each mode"
kubectl apply --filename hack/demo/claims.yaml --filename hack/demo/endless.yaml >/dev/null
kubectl --namespace demo wait pod/endless --for=condition=Ready --timeout=5m >/dev/null || fail "the pod that writes does not run"
more node2
took

step "upgrade: the provisioner, then one agent, then the other"
version new
more node1
agent node1 new
more node1
more node2
writes
agent node2 new
more node2
writes
took

step "downgrade, in the same order"
version old
more node2
agent node1 old
more node1
more node2
writes
agent node2 old
more node2
writes
took

step "upgrade again, and the pod ends"
version new
agent node1 new
agent node2 new
more node1
writes
kubectl --namespace demo exec endless -- touch /data/lvm/stop
kubectl --namespace demo wait pod/endless --for='jsonpath={.status.phase}=Succeeded' --timeout=2m >/dev/null || fail "the pod that writes did not end well"
kubectl --namespace demo get pod endless -o 'jsonpath={"    "}{.status.containerStatuses[0].state.terminated.message}'
took

step "everything is deleted"
kubectl delete namespace demo --timeout=3m >/dev/null
kubectl wait localvolumes --all --for=delete --timeout=2m >/dev/null || fail "volumes are left"
kubectl get pools
took
echo "all steps passed in $((SECONDS - begun)) s"
