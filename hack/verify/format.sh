#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! build/tools/golangci-lint fmt --diff; then
  echo "not formatted: run make format" >&2
  exit 1
fi

status=0
while IFS= read -r file; do
  if [[ $(head -n 2 "$file") != "$(cat hack/boilerplate.go.txt)" ]] && ! head -n 5 "$file" | grep -q 'SPDX-License-Identifier: Apache-2.0'; then
    echo "$file: begins without the licence header of hack/boilerplate.go.txt" >&2
    status=1
  fi
done < <(git ls-files '*.go')
exit "$status"
