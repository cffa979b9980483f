#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Generates into a copy and compares, so that a check never changes the tree.
set -euo pipefail
cd "$(dirname "$0")/../.."

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir -p "$copy/api"
cp -r api/v1alpha1 "$copy/api/"
cp -r deploy "$copy/"
# Files that are no longer generated must show as well.
find "$copy" -name 'zz_generated.*' -delete
rm -f "$copy"/deploy/crds/berth.dev_*.yaml "$copy"/deploy/base/rbac/{node-agent,provisioner}.yaml
rm -f "$copy"/deploy/chart/files/* "$copy"/deploy/chart/templates/{berth,crds}.yaml "$copy"/deploy/monitoring/prometheusrule.yaml

hack/generate.sh "$copy"

for folder in api/v1alpha1 deploy; do
  if ! diff -ruN "$folder" "$copy/$folder"; then
    echo "$folder is not what its sources generate: run make generate and commit the result" >&2
    exit 1
  fi
done
