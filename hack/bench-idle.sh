#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Measures what the agents and the provisioners of the running testbed cost while
# nothing happens: for a minute, on each node and process, processor time, wake-ups
# and system calls that read or write, and what Berth's objects saw at the API server.
# Prints Markdown.
set -euo pipefail
cd "$(dirname "$0")/.."

testbed=${TESTBED:-build/testbed}
seconds=${SECONDS_IDLE:-60}

# The script of the node: $1 is the number of seconds.
# shellcheck disable=SC2016
look='
set -euo pipefail
names="node-agent provisioner"
read_one() { # pid: ticks wake-ups calls kibibytes
  local ticks wakes calls rss
  ticks=$(sed "s/.*) //" "/proc/$1/stat" | cut -d" " -f12,13 | tr " " + )
  wakes=$(cat /proc/"$1"/task/*/status | awk "/^voluntary_ctxt_switches/ { s += \$2 } END { print s }")
  calls=$(awk "/^sysc[rw]/ { s += \$2 } END { print s }" "/proc/$1/io")
  rss=$(awk "/^VmRSS/ { print \$2 }" "/proc/$1/status")
  echo "$((ticks)) $wakes $calls $rss"
}
declare -A before
for name in $names; do
  for pid in $(pgrep -x "$name" || true); do before[$name:$pid]=$(read_one "$pid"); done
done
sleep "$1"
for key in "${!before[@]}"; do
  read -r t0 w0 c0 _ <<<"${before[$key]}"
  read -r t1 w1 c1 rss <<<"$(read_one "${key#*:}")"
  awk -v name="${key%:*}" -v node="$(hostname)" -v t=$((t1 - t0)) -v w=$((w1 - w0)) -v c=$((c1 - c0)) -v s="$1" -v r="$rss" \
    "BEGIN { printf \"| %s on %s | %.2f %% | %.1f | %.1f | %.1f MiB |\n\", name, node, t / s, w / s, c / s, r / 1024 }"
done'

# requests counts what was asked about what Berth writes.
requests() {
  "$testbed" kubectl get --raw /metrics | awk '
    /^apiserver_request_total\{/ && /verb="(POST|PUT|PATCH|DELETE)"/ &&
      /resource="(blockdevices|pools|poolsets|localvolumes|localsnapshots|csistoragecapacities)"/ { s += $NF } END { print s + 0 }'
}

"$testbed" status >/dev/null || {
  echo "bench-idle: no testbed is running: $testbed up, and hack/install.sh" >&2
  exit 1
}
nodes=$("$testbed" kubectl get nodes -o 'jsonpath={.items[*].metadata.name}')
before=$(requests)
echo "| idle for $seconds s | of a processor | wake-ups per second | reads and writes per second | resident |"
echo "| --- | --- | --- | --- | --- |"
pids=()
for node in $nodes; do
  "$testbed" exec "$node" bash -c "$look" idle "$seconds" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
echo
echo "Writes of BlockDevices, Pools, LocalVolumes and capacities meanwhile: $(($(requests) - before))"
