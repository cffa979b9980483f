#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Runs make targets one after the other and shows which one of how many is at
# work and how long each took:
#
#   hack/steps.sh [--keep-going] TARGET...
#
# Stops at the first that fails; with --keep-going runs all of them and names
# those that failed at the end. Exits 1 if one failed.
set -euo pipefail
cd "$(dirname "$0")/.."

keep_going=false
if [[ ${1:-} == --keep-going ]]; then
  keep_going=true
  shift
fi

title() { awk -v target="$1" -F ':.*## ' '$1 == target { print $2 }' Makefile; }

total=$# number=0 failed=()
for target in "$@"; do
  number=$((number + 1))
  label="[$number/$total] $target"
  started=$SECONDS
  printf '==> %s: %s\n' "$label" "$(title "$target")"
  if make --no-print-directory "$target"; then
    printf '    %s: %d s\n' "$label" $((SECONDS - started))
  else
    printf '    %s: FAILED after %d s\n' "$label" $((SECONDS - started))
    failed+=("$target")
    "$keep_going" || break
  fi
done

if ((${#failed[@]} > 0)); then
  printf '==> failed:%s\n' "$(printf ' make %s;' "${failed[@]}")" >&2
  exit 1
fi
