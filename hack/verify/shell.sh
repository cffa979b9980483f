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
# SC1091: files that are there only on the machine the script is for. SC2187:
# busybox sh is checked as dash, which is what is wanted.
if ! shellcheck --external-sources --exclude=SC1091,SC2187 "${scripts[@]}"; then
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
