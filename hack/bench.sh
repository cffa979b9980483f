#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Measures Berth's classes on the testbed by tests/bench, which can measure any
# provisioner by the name of its class. Prints Markdown and keeps it in build/.
# A testbed that it starts it takes down again.
set -euo pipefail
cd "$(dirname "$0")/.."

testbed=${TESTBED:-build/testbed}
nodes=${NODES:-2}
cpus=${CPUS:-2}

make --no-print-directory build-testbed build-image
if ! "$testbed" status >/dev/null 2>&1; then
  trap '"$testbed" down' EXIT
  trap 'exit 130' INT TERM
  "$testbed" up --nodes "$nodes" --cpus "$cpus" --image "${IMAGE:-build/berth-image.tar}"
fi
hack/install.sh

go build -o build/bench ./tests/bench
{
  "$testbed" run -- build/bench -node node1 -classes berth-lvm,berth-hostpath -n "${BENCH_N:-10}" -burst "${BENCH_BURST:-100}"
  # A burst of whole devices is as large as the number of a node's free disks.
  echo
  "$testbed" run -- build/bench -node node1 -classes berth-device=1Gi -n "${BENCH_N:-10}" -burst 4
  # The bound on the first of the classes.
  echo
  hack/bench-bare.sh
  echo
  hack/bench-lvm.sh
  # Discovery needs no cluster.
  echo
  go test -run XXX -bench 'FirstScan|Lsblk|Walk|Hotplug' -benchtime 20x ./internal/discovery | grep '^Benchmark'
} | tee build/bench.md
echo "==> kept in build/bench.md"
