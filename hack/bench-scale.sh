#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Measures by tests/scale how Berth's costs grow with the number of nodes: real agents
# over hollow hosts and the real provisioner, against an etcd and an apiserver of its
# own for each number, without the testbed. Needs root, some 3 MiB of memory for each
# node beside the apiserver's, and a machine that has nothing else to do: an apiserver
# without a processor loses its clients. Prints Markdown, and keeps it and a plot in build/.
#
#   hack/bench-scale.sh                     10, 100 and 1,000 nodes
#   hack/bench-scale.sh -nodes 100          one number; the others are kept from before
#   hack/bench-scale.sh -nodes ""           print again what is kept
#   build/testbed run -- hack/bench-scale.sh -nodes 10 -kubeconfig "$(build/testbed kubeconfig)"
#                                           against a cluster that has Berth, and is left as it was
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p build/scale
KUBEBUILDER_ASSETS=$(go run ./hack/assets)
export KUBEBUILDER_ASSETS
go build -o build/scale/ ./cmd/node-agent ./cmd/provisioner ./tests/scale
# It ends its own processes when it is told to end, and they end with it in any case.
build/scale/scale "$@" | tee build/bench-scale.md
echo "==> kept in build/bench-scale.md, build/bench-scale.json and build/bench-scale.svg"
