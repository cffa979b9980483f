// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"strings"
	"testing"
)

const aUID = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"

func TestPodOf(t *testing.T) {
	t.Parallel()
	escaped := strings.ReplaceAll(aUID, "-", "_")
	tests := []struct {
		parent, name, want string
	}{
		{"kubepods", "pod" + aUID, aUID},
		{"kubepods/burstable", "pod" + aUID, aUID},
		{"kubelet/kubepods/besteffort", "pod" + aUID, aUID},
		{"kubepods.slice", "kubepods-pod" + escaped + ".slice", aUID},
		{"kubepods.slice/kubepods-burstable.slice", "kubepods-burstable-pod" + escaped + ".slice", aUID},
		{"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice", "kubelet-kubepods-besteffort-pod" + escaped + ".slice", aUID},
		{"kubepods", "burstable", ""},
		{"kubepods", "podinfo", ""},
		{"kubepods.slice", "kubepods-burstable.slice", ""},
		{"kubepods.slice", "kubepods-pod" + escaped, ""},
		{"kubepods.slice", "kubepods-pod" + aUID + ".slice", ""},
		{"kubepods.slice", "kubepods-besteffort-pod" + escaped + ".slice", ""},
		{"kubepods.slice/kubepods-burstable.slice", "kubepods-pod" + escaped + ".slice", ""},
	}
	for _, tt := range tests {
		if got, ok := podOf(tt.parent, tt.name); ok != (tt.want != "") || ok && got != tt.want {
			t.Errorf("%s/%s is taken for pod %q, %v, want %q", tt.parent, tt.name, got, ok, tt.want)
		}
	}
}

func FuzzPodOf(f *testing.F) {
	f.Add("kubepods.slice", "kubepods-pod"+strings.ReplaceAll(aUID, "-", "_")+".slice")
	f.Add("kubepods", "pod"+aUID)
	f.Fuzz(func(t *testing.T, parent, name string) {
		if uid, ok := podOf(parent, name); ok && (!uidPattern.MatchString(uid) || strings.ContainsAny(uid, "/.")) {
			t.Errorf("%q in %q is taken for pod %q", name, parent, uid)
		}
	})
}
