{{- /* Copyright The Berth Authors. SPDX-License-Identifier: Apache-2.0 */ -}}

{{- define "berth.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* The container of csi-snapshotter, as an item of a list, from the patch of deploy/snapshots. */ -}}
{{- define "berth.snapshotter" -}}
{{- if or .Values.snapshots.enabled .Values.snapshots.groups -}}
{{- $patch := .Files.Get "files/csi-snapshotter.yaml" | fromYaml -}}
{{- $container := index $patch.spec.template.spec.containers 0 -}}
{{- if .Values.snapshots.image -}}{{- $_ := set $container "image" .Values.snapshots.image -}}{{- end -}}
{{- $text := list $container | toYaml -}}
{{- if .Values.snapshots.groups -}}
{{- $text = $text | replace "CSIVolumeGroupSnapshot=false" "CSIVolumeGroupSnapshot=true" -}}
{{- end -}}
{{ $text }}
{{- end -}}
{{- end -}}
