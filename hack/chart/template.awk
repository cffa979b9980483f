# Copyright The Berth Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Makes a template of Helm of what hack/chart/overlay builds. The marks are explained there.
BEGIN {
  print "{{- /* Generated from deploy/base by make generate. Do not edit. */ -}}"
}
{
  if (index($0, "{{")) {
    print "what looks like a template stands in a manifest: " $0 > "/dev/stderr"
    exit 1
  }
  match($0, /^ */)
  indent = RLENGTH
  margin = substr($0, 1, indent)
}
# A whole item: a container that may be there or not.
match($0, /^ *- name: helm\+/) {
  printf "%s{{- include \"%s\" . | nindent %d }}\n", margin, substr($0, RLENGTH + 1), indent
  next
}
match($0, /^ *- helm\?/) {
  split(substr($0, RLENGTH + 1), part, " ")
  printf "%s{{- with %s }}\n%s- %s={{ . }}\n%s{{- end }}\n", margin, part[1], margin, part[2], margin
  next
}
match($0, /^ *- helm=/) {
  printf "%s{{- with %s }}{{ toYaml . | nindent %d }}{{ end }}\n", margin, substr($0, RLENGTH + 1), indent
  next
}
match($0, /^ *[A-Za-z.]+: helm=/) {
  key = substr($0, indent + 1, RLENGTH - indent - 5)
  sub(/[.]chart:/, ":", key)
  printf "%s{{- with %s }}\n%s%s{{ toYaml . | nindent %d }}\n%s{{- end }}\n", margin, substr($0, RLENGTH + 1), margin, key, indent + 2, margin
  next
}
{
  line = $0
  # The expression ends at the last parenthesis of the word.
  while ((at = index(line, "helm(")) > 0) {
    rest = substr(line, at + 5)
    end = index(rest, ")")
    line = substr(line, 1, at - 1) "{{ " substr(rest, 1, end - 1) " }}" substr(rest, end + 1)
  }
  gsub(/berth-system/, "{{ .Release.Namespace }}", line)
  print line
}
