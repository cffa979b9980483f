#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Runs the end-to-end suite on a kind cluster of its own, which it deletes again.
# The nodes share the machine's disks, so only mode hostpath is tested there.
set -euo pipefail
cd "$(dirname "$0")/.."

for program in docker kind kubectl; do
  if ! command -v "$program" >/dev/null; then
    echo "make e2e-kind needs $program in PATH; make e2e needs none of it" >&2
    exit 1
  fi
done

image=${IMAGE:-build/berth-image.tar}
results=build/test
cluster=berth-e2e
KUBECONFIG=$PWD/build/kind-kubeconfig
export KUBECONFIG

make --no-print-directory build-image
trap 'kind delete cluster --name "$cluster"' EXIT
trap 'exit 130' INT TERM
kind create cluster --name "$cluster" --config tests/e2e/kind/cluster.yaml
kind load image-archive "$image" --name "$cluster"

kubectl apply --filename deploy/berth.yaml
kubectl wait --for=condition=Established --timeout=60s crd/blockdevices.berth.dev crd/localsnapshots.berth.dev crd/localvolumes.berth.dev crd/pools.berth.dev crd/poolsets.berth.dev
kubectl apply --filename deploy/examples/hostpath.yaml
kubectl --namespace berth-system rollout status daemonset/berth-node-agent --timeout=5m
kubectl --namespace berth-system rollout status deployment/berth-provisioner --timeout=5m

mkdir -p "$results"
rm -f "$results"/kind{,-ginkgo}.json
go test -c -o build/e2e.test ./tests/e2e
build/e2e.test -cluster tests/e2e/kind/description.yaml --ginkgo.timeout=2h \
  --ginkgo.json-report="$PWD/$results/kind-ginkgo.json" || true
go run ./hack/testreport ginkgo --name kind --report "$results/kind-ginkgo.json" || true
go run ./hack/testreport sum kind
