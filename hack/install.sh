#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Installs Berth as it was built from this tree on the running testbed, with the
# PoolSets and StorageClasses of deploy/examples, and waits until volumes can be
# made. Repeating it changes nothing; with a new image the pods are replaced.
set -euo pipefail
cd "$(dirname "$0")/.."

testbed=${TESTBED:-build/testbed}
image=${IMAGE:-build/berth-image.tar}
kubectl() { "$testbed" kubectl "$@"; }
namespace=berth-system

digest=$(sha256sum "$image" | cut -d ' ' -f 1)
installed=$(kubectl get namespace "$namespace" --ignore-not-found -o 'jsonpath={.metadata.annotations.berth\.dev/image-archive}')
"$testbed" load "$image" | sed 's/^/    /'

echo "    applying deploy/group-snapshots: Berth, with csi-snapshotter beside the provisioner"
kubectl apply --kustomize deploy/group-snapshots >/dev/null
if [[ -n $installed && $installed != "$digest" ]]; then
  kubectl --namespace "$namespace" rollout restart daemonset/berth-node-agent deployment/berth-provisioner >/dev/null
fi

echo "    applying deploy/examples"
kubectl wait --for=condition=Established --timeout=60s crd/blockdevices.berth.dev crd/localsnapshots.berth.dev crd/localvolumes.berth.dev crd/pools.berth.dev crd/poolsets.berth.dev >/dev/null
kubectl apply --kustomize deploy/examples >/dev/null

if ! {
  kubectl --namespace "$namespace" rollout status daemonset/berth-node-agent --timeout=5m &&
    kubectl --namespace "$namespace" rollout status deployment/berth-provisioner --timeout=5m
} | sed 's/^/    /'; then
  kubectl --namespace "$namespace" get pods -o wide >&2 || true
  kubectl --namespace "$namespace" get events --sort-by=.lastTimestamp >&2 || true
  echo "Berth's pods did not become ready" >&2
  exit 1
fi

for node in $(kubectl get nodes -o 'jsonpath={.items[*].metadata.name}'); do
  for pool in fast dirs; do
    if ! kubectl wait "pools/$pool-$node" --for=create --timeout=2m >/dev/null ||
      ! kubectl wait "pools/$pool-$node" --for=condition=Ready --timeout=2m >/dev/null; then
      kubectl get pools,blockdevices -o wide >&2
      echo "pool $pool-$node did not become ready" >&2
      exit 1
    fi
  done
done
kubectl annotate namespace "$namespace" --overwrite "berth.dev/image-archive=$digest" >/dev/null
echo "    every pool is ready"
