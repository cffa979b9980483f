#!/usr/bin/env bash
# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Writes every generated file:
#
#   hack/generate.sh [ROOT]
#
# into the work tree, or into ROOT, a folder that has a copy of deploy/.
# `make verify` compares the two. The tools come from make (build/tools).
set -euo pipefail
cd "$(dirname "$0")/.."

root=${1:-.}
tools=build/tools

echo "    deepcopy functions and CustomResourceDefinitions from api/"
"$tools/controller-gen" \
  object:headerFile=hack/boilerplate.go.txt \
  crd:headerFile=hack/boilerplate.yaml.txt \
  paths=./api/... \
  "output:object:dir=$root/api/v1alpha1" \
  "output:crd:dir=$root/deploy/crds"

for command in node-agent provisioner; do
  echo "    RBAC of the $command from its +kubebuilder:rbac markers"
  "$tools/controller-gen" \
    "rbac:roleName=berth-$command,fileName=$command.yaml,headerFile=hack/boilerplate.yaml.txt" \
    "paths=./cmd/$command/..." \
    "output:rbac:dir=$root/deploy/base/rbac"
done

echo "    filters of the ConfigMap berth-config"
cp internal/discovery/default-filters.yaml "$root/deploy/base/filters.yaml"

echo "    PrometheusRule from deploy/monitoring/rules.yaml"
{
  cat hack/boilerplate.yaml.txt
  cat <<'EOF'
# Generated from rules.yaml by make generate. Do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: berth
  namespace: berth-system
spec:
EOF
  sed -n '/^groups:$/,$ s/^/  /p' "$root/deploy/monitoring/rules.yaml"
} >"$root/deploy/monitoring/prometheusrule.yaml"

echo "    one-file install deploy/berth.yaml"
{
  cat hack/boilerplate.yaml.txt
  echo "# Generated from deploy/base by make generate. Do not edit."
  "$tools/kustomize" build "$root/deploy/base"
} >"$root/deploy/berth.yaml.new"
mv "$root/deploy/berth.yaml.new" "$root/deploy/berth.yaml"
