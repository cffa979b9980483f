#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Measures what pkg/lvm costs on node1 of the running testbed beside lvm's own commands,
# and fio on its volumes beside a disk, each in turn with the other. Prints Markdown. Two
# disks are added to the node for it and removed again.
#
# Elsewhere, as root, on two disks that may be destroyed:
#   go test -c -o lvm.test ./pkg/lvm
#   BERTH_TEST_DISK=/dev/vdX,/dev/vdY BERTH_TEST_COSTS=1,100 ./lvm.test -test.run 'KernelCosts|KernelDataPath'
set -euo pipefail
cd "$(dirname "$0")/.."

testbed=${TESTBED:-build/testbed}
node=node1
numbers=${BENCH_VOLUMES:-1,100,500,1000}
serials=(BENCH-LVM-1 BENCH-LVM-2)

"$testbed" status >/dev/null || {
  echo "bench-lvm: no testbed is running: $testbed up" >&2
  exit 1
}
CGO_ENABLED=0 go test -c -ldflags '-s -w' -o build/lvm.test ./pkg/lvm

remove() {
  local serial
  for serial in "${serials[@]}"; do "$testbed" disk remove "$node" "$serial" >/dev/null 2>&1 || true; done
  "$testbed" exec "$node" rm -f /run/berth-bench-lvm.test || true
}
trap remove EXIT
trap 'exit 130' INT TERM
for serial in "${serials[@]}"; do
  "$testbed" disk add "$node" --serial "$serial" --size $((8 << 30)) >&2
done
"$testbed" cp build/lvm.test "$node:/run/berth-bench-lvm.test"

# The script of the node: $1 is the number of volumes, then the serials of the disks.
# shellcheck disable=SC2016
measure='
set -euo pipefail
export PATH=/usr/sbin:/usr/bin
numbers=$1
shift
disks=
for serial; do
  disk=$(lsblk --nodeps --noheadings --output PATH,SERIAL | awk -v serial="$serial" '\''$2 == serial { print $1 }'\'')
  [[ -b $disk ]] || { echo "no disk has the serial $serial" >&2; exit 1; }
  [[ -z $(wipefs --noheadings "$disk") ]] || { echo "$disk ($serial) is not blank" >&2; exit 1; }
  disks+=${disks:+,}$disk
done
chmod +x /run/berth-bench-lvm.test
BERTH_TEST_DISK=$disks BERTH_TEST_COSTS=$numbers /run/berth-bench-lvm.test -test.run "KernelCosts|KernelDataPath" -test.timeout 2h
'
"$testbed" exec "$node" bash -c "$measure" measure "$numbers" "${serials[@]}" | grep -v '^PASS$'
