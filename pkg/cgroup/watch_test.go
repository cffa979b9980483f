// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-dev/berth/pkg/cgroup"
)

// watched runs a watch over a tree of plain directories.
type watched struct {
	t    *testing.T
	root string
	told chan string
	*cgroup.Watch
}

func watchIn(t *testing.T, groups ...string) *watched {
	t.Helper()
	w := &watched{t: t, root: t.TempDir(), told: make(chan string, 100)}
	for _, group := range groups {
		w.make(group)
	}
	var err error
	if w.Watch, err = cgroup.OpenWatch(w.root); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx, func(uid string) { w.told <- uid }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *watched) make(group string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Join(w.root, group), 0o755); err != nil {
		w.t.Fatal(err)
	}
}

func (w *watched) expect(what string) {
	w.t.Helper()
	select {
	case got := <-w.told:
		if got != what {
			w.t.Fatalf("told of %q, want %q", got, what)
		}
	case <-time.After(10 * time.Second):
		w.t.Fatalf("not told of %q", what)
	}
}

func TestWatchTellsOfPodsAndTheirContainers(t *testing.T) {
	t.Parallel()
	w := watchIn(t, "kubepods.slice/kubepods-burstable.slice")
	burstable := layouts(uidA)["systemd, Burstable"]
	if err := w.Follow(uidA); err != nil {
		t.Fatalf("a pod without a group: %v", err)
	}
	w.make(burstable)
	w.expect(uidA)
	w.make(burstable + "/not-followed-yet.scope")
	for range 2 {
		if err := w.Follow(uidA); err != nil {
			t.Fatal(err)
		}
	}
	w.make(burstable + "/cri-containerd-1.scope")
	w.expect(uidA)
	guaranteed := layouts(uidB)["systemd, Guaranteed"]
	w.make("kubepods.slice/something.slice")
	w.make(guaranteed)
	w.expect(uidB)
	if err := os.Remove(filepath.Join(w.root, guaranteed)); err != nil {
		t.Fatal(err)
	}
	w.make(guaranteed)
	w.expect(uidB)
}

// The first pod of a class may be there before its class is watched.
func TestWatchTakesUpAClassThatComesLater(t *testing.T) {
	t.Parallel()
	w := watchIn(t, "kubepods")
	w.make("kubepods/besteffort")
	w.expect(cgroup.Everything)
	w.make(layouts(uidA)["cgroupfs, BestEffort"])
	w.expect(uidA)
	if err := os.Remove(filepath.Join(w.root, layouts(uidA)["cgroupfs, BestEffort"])); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(w.root, "kubepods/besteffort")); err != nil {
		t.Fatal(err)
	}
	w.expect(cgroup.Everything)
}

func TestWatchWithoutCgroups(t *testing.T) {
	t.Parallel()
	watch, err := cgroup.OpenWatch(filepath.Join(t.TempDir(), "none"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := watch.Run(ctx, func(string) {}); err != nil {
		t.Error(err)
	}
	if err := watch.Follow(uidA); err != nil {
		t.Errorf("after its end: %v", err)
	}
}
