// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/internal/discovery"
)

// A node's kubelet reports every few seconds; each report must not make the agent read
// all its disks.
func TestReportsOfKubeletDoNotCount(t *testing.T) {
	t.Parallel()
	node := func(uid, version string) *metav1.PartialObjectMetadata {
		m := discovery.NodeMetadata()
		m.UID, m.ResourceVersion = types.UID(uid), version
		return m
	}
	kicked := 0
	h := kicks(func() { kicked++ }, isAnotherOne)
	for _, step := range []struct {
		what string
		do   func()
		want int
	}{
		{"added", func() { h.OnAdd(node("a", "1"), true) }, 1},
		{"reported", func() { h.OnUpdate(node("a", "1"), node("a", "2")) }, 1},
		{"made again", func() { h.OnUpdate(node("a", "2"), node("b", "3")) }, 2},
		{"deleted", func() { h.OnDelete(node("b", "3")) }, 3},
	} {
		if step.do(); kicked != step.want {
			t.Errorf("after the Node was %s: %d kicks, want %d", step.what, kicked, step.want)
		}
	}
}
