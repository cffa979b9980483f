#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Measures what the host's own tools need for a logical volume with ext4 on node1 of
# the running testbed, without Kubernetes and without Berth: the bound on what any
# provisioner that calls them can reach there. Prints Markdown. The disk with the
# serial N1-DISK-D is used, must be blank, and is blank again in the end.
set -euo pipefail
cd "$(dirname "$0")/.."

testbed=${TESTBED:-build/testbed}

# The script of the node: $1 is the serial of the disk.
# shellcheck disable=SC2016
bare='
set -euo pipefail
export PATH=/usr/sbin:/usr/bin
group=bench-bare
disk=$(lsblk --nodeps --noheadings --output PATH,SERIAL | awk -v serial="$1" '\''$2 == serial { print $1 }'\'')
[[ -b $disk ]] || { echo "no disk has the serial $1" >&2; exit 1; }
[[ -z $(wipefs --noheadings "$disk") ]] || { echo "$disk ($1) is not blank" >&2; exit 1; }
clean() {
  vgremove --quiet --force --yes "$group" >/dev/null 2>&1 || true
  pvremove --quiet --yes "$disk" >/dev/null 2>&1 || true
  dd if=/dev/zero of="$disk" bs=1M count=4 conv=fsync status=none
  blkdiscard --force "$disk"
}
trap clean EXIT
vgcreate --quiet --yes "$group" "$disk" >/dev/null
create() { echo "lvcreate --quiet --yes --wipesignatures n --zero n --name $1 --size 64M $group"; }
format() { mkfs.ext4 -q "/dev/$group/$1"; }
both() { quiet lvm $(create "$1") && format "$1"; }
# Each volume that is not zeroed is a warning, on purpose here.
quiet() { "$@" >/dev/null 2> >(grep --invert-match "not zeroed" >&2 || true); }
now() { date +%s.%N; }
row() { awk -v what="$1" -v n="$2" -v from="$3" -v to="$4" '\''BEGIN { printf "| %s | %.2f per second |\n", what, n / (to - from) }'\''; }

began=$(now)
for i in {1..10}; do both "a$i"; done
row "lvcreate and mkfs.ext4, one volume after another" 10 "$began" "$(now)"

began=$(now)
for i in {1..5}; do
  for j in {1..4}; do both "b$i$j" & done
  wait
done
row "the same, four at once" 20 "$began" "$(now)"

began=$(now)
for i in {1..20}; do create "c$i"; done | quiet lvm
created=$(now)
for i in {1..20}; do
  format "c$i" &
  ((i % 2)) || wait
done
wait
row "20 lvcreate in one lvm, then two mkfs.ext4 at once" 20 "$began" "$(now)"
row "of these the lvcreate alone" 20 "$began" "$created"

began=$(now)
lvremove --quiet --yes "$group" >/dev/null
row "50 lvremove in one lvm, nothing wiped" 50 "$began" "$(now)"
'

"$testbed" status >/dev/null || {
  echo "bench-bare: no testbed is running: $testbed up" >&2
  exit 1
}
echo "| the host's tools on node1 | |"
echo "| --- | --- |"
"$testbed" exec node1 bash -c "$bare" bare N1-DISK-D
