#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# For scripts that go through steps on the testbed: they set total, the number of their
# steps, and testbed, its command, before they source this.

number=0 started=$SECONDS

# step says which step begins, and took how long it was.
step() {
  number=$((number + 1))
  started=$SECONDS
  printf '\n==> [%d/%d] %s\n' "$number" "${total:?}" "$*"
}
took() { printf '    %d s\n' $((SECONDS - started)); }

kubectl() { "${testbed:?}" kubectl "$@"; }

# fail ends the script with a reason and with what a person would look at then.
fail() {
  echo "${0##*/}: $*" >&2
  kubectl get pods,pvc --all-namespaces -o wide >&2 || true
  kubectl get localvolumes,pools,blockdevices -o wide >&2 || true
  exit 1
}
