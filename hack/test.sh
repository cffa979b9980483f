#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Runs stages of the tests and closes with one count of all of them:
#
#   hack/test.sh unit conformance integration e2e
#   hack/test.sh soak
#
# A testbed that it starts it takes down again, whatever happens; one that was up
# stays up. Every stage runs, also after one that failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

testbed=${TESTBED:-build/testbed}
nodes=${NODES:-2}
image=${IMAGE:-build/berth-image.tar}
results=build/test
mine=false

take_down() {
  if "$mine"; then
    mine=false
    echo "==> take the testbed down"
    "$testbed" down
  fi
}
trap take_down EXIT
trap 'exit 130' INT TERM

report() { go run ./hack/testreport "$@"; }

# bring_up starts the testbed with Berth on it.
bring_up() {
  make --no-print-directory build-image || return
  if ! "$testbed" status >/dev/null 2>&1; then
    mine=true
    "$testbed" up --nodes "$nodes" --image "$image" || return
  fi
  hack/install.sh
}

# suite runs the end-to-end suite as stage $1: with Ginkgo's flags that follow, and
# with the suite's own behind "--". Specs that need no cluster for themselves run
# beside each other: they mostly wait.
suite() {
  local name=$1 flags=()
  shift
  while (($#)) && [[ $1 != -- ]]; do
    flags+=("$1")
    shift
  done
  bring_up || return
  go build -o build/tools/ginkgo github.com/onsi/ginkgo/v2/ginkgo || return
  go test -c -o build/e2e.test ./tests/e2e || return
  rm -f "$results/$name-ginkgo.json"
  "$testbed" run -- build/tools/ginkgo --procs="${E2E_PROCS:-3}" --no-color -v --timeout=5h \
    --output-dir="$PWD/$results" --json-report="$name-ginkgo.json" "${flags[@]}" \
    build/e2e.test -- -cluster "$PWD/tests/e2e/testbed.yaml" "${@:2}"
  # The report decides; a suite that died without one is a failure.
  report ginkgo --name "$name" --report "$results/$name-ginkgo.json"
}

stage() {
  case $1 in
    unit) make --no-print-directory unit ;;
    # What the unit tests leave out under the race detector: the layouts of pools, filesystems that
    # can do more than others, and csi-sanity.
    conformance) report run --name conformance -- go test -timeout 20m -run 'Conformance|FaultMatrix|Sanity' ./pkg/lvm ./pkg/hostpath ./internal/sanity ;;
    integration)
      KUBEBUILDER_ASSETS=$(go run ./hack/assets) || return
      export KUBEBUILDER_ASSETS
      report run --name integration -- go test -count=1 -timeout 20m ./tests/integration/...
      ;;
    e2e) suite e2e --label-filter='!long' ;;
    long) suite long --label-filter=long ;;
    soak) suite soak --label-filter=long -- -creations=300 -power-losses=30 -operations=500 -outage=10m ;;
    *)
      echo "no such stage: $1" >&2
      return 2
      ;;
  esac
}

# watched runs stage $1. Where nobody watches, what it said is kept, so that the
# end can repeat why a stage did not even start.
watched() {
  if [[ -t 1 ]]; then
    stage "$1"
  else
    stage "$1" > >(tee "$results/$1.log") 2>&1
  fi
}

mkdir -p "$results"
make --no-print-directory build-testbed || exit
number=0
for name in "$@"; do
  number=$((number + 1))
  rm -f "$results/$name.json" "$results/$name.log"
  echo "==> [$number/$#] $name tests"
  started=$SECONDS
  if watched "$name"; then
    echo "    [$number/$#] $name: $((SECONDS - started)) s"
  else
    echo "    [$number/$#] $name: FAILED after $((SECONDS - started)) s"
  fi
done
take_down
report sum "$@"
