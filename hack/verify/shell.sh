#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/../.."

# Every tracked file that a shell runs, by its first line.
mapfile -t scripts < <(git ls-files | while IFS= read -r file; do
  [[ -f $file ]] && head -c 64 "$file" | head -n 1 | grep -qE '^#!.*\b(ba)?sh\b' && printf '%s\n' "$file"
done || true)
if ((${#scripts[@]} == 0)); then
  echo "no shell script found: the search is wrong" >&2
  exit 1
fi
if ! shellcheck --external-sources "${scripts[@]}"; then
  echo "shellcheck explains each finding at https://www.shellcheck.net/wiki/" >&2
  exit 1
fi
for script in "${scripts[@]}"; do
  if [[ ! -x $script ]]; then
    echo "$script: not executable: chmod +x $script" >&2
    exit 1
  fi
done
echo "    ${#scripts[@]} scripts"
