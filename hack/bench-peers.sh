#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Measures Berth's classes and those of two peers in one run on the running
# testbed, on which Berth is installed: TopoLVM and local-path-provisioner, built
# from their Go modules by tests/bench/peers. Prints Markdown, keeps it in
# build/bench-peers.md, and removes the peers again, also when something fails.
#
#   hack/bench-peers.sh            all of it
#   hack/bench-peers.sh build      only build the images
#   hack/bench-peers.sh install    build and install, and leave them there
#   hack/bench-peers.sh measure    measure what is installed
#   hack/bench-peers.sh remove     remove what is installed
#
# TopoLVM gets the volume group peer-vg on one blank disk of node1 and node2, with
# the serials N1-DISK-D and N2-DISK-D. Berth sees such a disk as used meanwhile;
# it is blank again in the end.
set -euo pipefail
cd "$(dirname "$0")/.."

testbed=${TESTBED:-build/testbed}
nodes=(node1 node2)
group=peer-vg
label=bench.berth.dev/peer
classes=berth-lvm,topolvm-provisioner,berth-hostpath,local-path
processes="node-agent,provisioner,topolvm-node,topolvm-controller,csi-provisioner,csi-resizer,registrar,local-path-provisioner"

step() { printf '==> %s\n' "$*" >&2; }
fail() {
  printf 'bench-peers: %s\n' "$*" >&2
  exit 1
}
kubectl() { "$testbed" kubectl "$@"; }
serial() { printf 'N%s-DISK-D\n' "${1#node}"; }

# on_node runs a script on a node, with the serial of its disk and the group's name.
on_node() {
  local node=$1 script=$2
  "$testbed" exec "$node" bash -c "set -euo pipefail; export PATH=/usr/sbin:/usr/bin; $script" "$node" "$(serial "$node")" "$group"
}

# In the scripts of on_node $1 is the serial and $2 the group.
# shellcheck disable=SC2016
find_disk='disk=$(lsblk --nodeps --noheadings --output PATH,SERIAL | awk -v serial="$1" '\''$2 == serial { print $1 }'\'')
[[ -b $disk ]] || { echo "no disk has the serial $1" >&2; exit 1; }'

# shellcheck disable=SC2016
make_group="$find_disk"'
if vgs "$2" >/dev/null 2>&1; then
  [[ $(vgs --noheadings --options pv_name "$2" | tr -d " ") == "$disk" ]] || { echo "volume group $2 is not on $disk" >&2; exit 1; }
  exit 0
fi
if [[ -n $(wipefs --noheadings "$disk") || $(lsblk --noheadings --output NAME "$disk" | wc -l) -ne 1 ]]; then
  echo "$disk ($1) is not blank:" >&2
  lsblk --fs "$disk" >&2
  exit 1
fi
vgcreate --yes "$2" "$disk"'

# Nothing of the group is left on the disk, so that Berth takes it for blank.
# shellcheck disable=SC2016
remove_group="$find_disk"'
if vgs "$2" >/dev/null 2>&1; then
  [[ $(vgs --noheadings --options pv_name "$2" | tr -d " ") == "$disk" ]] || { echo "volume group $2 is not on $disk" >&2; exit 1; }
  vgremove --force --yes "$2"
  pvremove --yes "$disk"
  dd if=/dev/zero of="$disk" bs=1M count=4 conv=fsync status=none
  blkdiscard --force "$disk"
fi
rm -rf /dev/topolvm /opt/local-path-provisioner /var/lib/kubelet/plugins/topolvm.io'

check() {
  "$testbed" status >/dev/null || fail "no testbed is running: $testbed up --nodes 2"
  kubectl get storageclass berth-lvm berth-hostpath >/dev/null || fail "Berth is not installed: hack/install.sh"
}

build() {
  step "build the peers (the first time some minutes)"
  go run ./tests/bench/peers >&2
  go build -o build/bench ./tests/bench
}

# await repeats a command until it succeeds.
await() {
  local what=$1 deadline=$((SECONDS + 300))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || fail "$what: not after 5 minutes; $testbed kubectl get pods,events -A tells more"
    sleep 2
  done
}

registered() { [[ " $(kubectl get csinode "$1" -o 'jsonpath={.spec.drivers[*].name}') " == *" topolvm.io "* ]]; }

# capacity_known is true when every node has a capacity of TopoLVM's class.
capacity_known() {
  local found
  found=$(kubectl --namespace topolvm-system get csistoragecapacities \
    -o 'jsonpath={range .items[?(@.storageClassName=="topolvm-provisioner")]}{.capacity}{"\n"}{end}')
  (($(grep -c '[1-9]' <<<"$found") >= ${#nodes[@]}))
}

install() {
  local node state
  step "make the volume group $group"
  for node in "${nodes[@]}"; do
    state=$(kubectl get blockdevices.berth.dev \
      -o "jsonpath={.items[?(@.status.serial==\"$(serial "$node")\")].status.claimState}")
    [[ $state == Unclaimed ]] || fail "Berth says that disk $(serial "$node") is '$state', not Unclaimed"
    on_node "$node" "$make_group" >&2
    kubectl label node "$node" --overwrite "$label=yes" >/dev/null
  done

  step "load the images (hashing them takes an emulated node some minutes)"
  "$testbed" load build/peers/local-path-provisioner.tar >&2
  "$testbed" load build/peers/topolvm-with-sidecar.tar >&2

  step "install the peers"
  kubectl apply --filename build/peers/topolvm-crd.yaml >/dev/null
  kubectl wait --for=condition=Established --timeout=60s crd/logicalvolumes.topolvm.io >/dev/null
  kubectl apply --filename tests/bench/peers/manifests >/dev/null
  kubectl --namespace local-path-storage rollout status deployment/local-path-provisioner --timeout=10m >&2
  kubectl --namespace topolvm-system rollout status daemonset/topolvm-node --timeout=10m >&2
  kubectl --namespace topolvm-system rollout status deployment/topolvm-controller --timeout=10m >&2
  for node in "${nodes[@]}"; do await "$node has the CSI driver topolvm.io" registered "$node"; done
  await "TopoLVM's capacity is published" capacity_known
}

# A burst of 64 MiB volumes has to fit into 5 GiB.
measure() {
  step "measure $classes"
  "$testbed" run -- build/bench -node node1 -classes "$classes" -n "${BENCH_N:-10}" -burst "${BENCH_BURST:-50}" \
    -processes "$processes" -timeout "${BENCH_TIMEOUT:-2h}" | tee build/bench-peers.md
  step "kept in build/bench-peers.md"
}

no_volumes() { [[ -z $(kubectl get persistentvolumes -o 'jsonpath={.items[?(@.spec.storageClassName=="'"$1"'")].metadata.name}') ]]; }

# remove goes on after a failure, so that as little as possible is left.
remove() {
  local node class status=0
  step "remove the peers"
  for class in topolvm-provisioner local-path; do
    (await "volumes of $class are gone" no_volumes "$class") || status=1
  done
  ((status == 0)) || fail "volumes of the peers are left, so the peers stay: delete the claims, then hack/bench-peers.sh remove"
  kubectl delete --ignore-not-found --timeout=5m --filename tests/bench/peers/manifests >/dev/null || status=1
  kubectl delete --ignore-not-found --timeout=2m crd/logicalvolumes.topolvm.io >/dev/null || status=1
  for node in "${nodes[@]}"; do
    kubectl label node "$node" "$label-" topology.topolvm.io/node- >/dev/null || status=1
    kubectl annotate node "$node" capacity.topolvm.io/00default- capacity.topolvm.io/peer- >/dev/null || status=1
    # TopoLVM holds nodes by a finalizer; nothing else here does.
    if [[ $(kubectl get node "$node" -o 'jsonpath={.metadata.finalizers}') == '["topolvm.io/node"]' ]]; then
      kubectl patch node "$node" --type=merge --patch '{"metadata":{"finalizers":null}}' >/dev/null || status=1
    fi
    on_node "$node" "$remove_group" >&2 || status=1
  done
  return "$status"
}

case ${1:-all} in
  build) build ;;
  install)
    check
    build
    install
    ;;
  measure)
    check
    measure
    ;;
  remove)
    check
    remove
    ;;
  all)
    check
    build
    trap remove EXIT
    trap 'exit 130' INT TERM
    install
    measure
    ;;
  *) fail "unknown part '$1': build, install, measure or remove" ;;
esac
