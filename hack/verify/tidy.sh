#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/../.."

status=0
while IFS= read -r file; do
  folder=$(dirname "$file")
  if ! go -C "$folder" mod tidy -diff; then
    echo "$file is not tidy: run go -C $folder mod tidy" >&2
    status=1
  fi
done < <(git ls-files '*go.mod')
exit "$status"
