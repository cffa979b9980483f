#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Says in words what is wrong when there is no Go, or one that is too old.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=$(awk '$1 == "go" { print $2; exit }' go.mod)
if ! command -v go >/dev/null; then
  echo "Go $wanted or newer is needed and there is no go in PATH: install it from https://go.dev/dl" >&2
  exit 1
fi
# In the module's folder: here an older Go fetches the wanted one by itself,
# unless GOTOOLCHAIN=local forbids it; then its own message says so.
if ! go version >/dev/null; then
  echo "Go $wanted or newer is needed: install it from https://go.dev/dl, or unset GOTOOLCHAIN" >&2
  exit 1
fi
