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

echo "    chart deploy/chart"
chart=$root/deploy/chart
mkdir -p "$chart/files" "$chart/templates"
overlay=$root/deploy/.chart-overlay
trap 'rm -rf "$overlay"' EXIT
mkdir -p "$overlay"
# Where it is built, deploy/base is beside it.
sed 's|\.\./\.\./\.\./deploy/base|../base|' hack/chart/overlay/kustomization.yaml >"$overlay/kustomization.yaml"
built=$("$tools/kustomize" build "$overlay")
# The definitions in a file of their own: they are most of it.
for part in crds berth; do
  awk -v part="$part" '
    /^---$/ { flush(); next }
    { document = document $0 "\n"; if ($0 == "kind: CustomResourceDefinition") crd = 1 }
    function flush() {
      if (crd == (part == "crds") && document != "") printf "%s---\n", document
      document = ""
      crd = 0
    }
    END { flush() }
  ' <<<"$built" | awk -f hack/chart/template.awk >"$chart/templates/$part.yaml"
done
cp "$root/deploy/base/filters.yaml" "$root"/deploy/monitoring/{rules,podmonitors}.yaml "$root/deploy/monitoring/dashboard.json" "$chart/files/"
cp "$root/deploy/snapshots/csi-snapshotter.yaml" "$chart/files/"
for folder in snapshots group-snapshots; do
  for file in rbac class; do
    cp "$root/deploy/$folder/$file.yaml" "$chart/files/$folder-$file.yaml"
  done
done
