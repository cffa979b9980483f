// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/cgroup"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
	"github.com/berth-dev/berth/pkg/volume"
)

// kernelRoot makes a group in the machine's own cgroup v2 that stands for the root.
func kernelRoot(t *testing.T) string {
	t.Helper()
	const mounted = "/sys/fs/cgroup"
	controllers, err := os.ReadFile(filepath.Join(mounted, "cgroup.subtree_control"))
	if err != nil || !slices.Contains(strings.Fields(string(controllers)), "io") {
		t.Skipf("needs cgroup v2 with the controller io at %s: %v", mounted, err)
	}
	mounttest.RequireRoot(t)
	root, err := os.MkdirTemp(mounted, "berth-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeGroups(t, root) })
	return root
}

// removeGroups removes a group and those below it, the lowest first.
func removeGroups(t *testing.T, group string) {
	t.Helper()
	below, err := cgroup.Mounted{Root: group}.Directories(".")
	if err != nil {
		t.Error(err)
	}
	for _, name := range below {
		removeGroups(t, filepath.Join(group, name))
	}
	if err := os.Remove(group); err != nil {
		t.Error(err)
	}
}

// What cgrouptest pretends is what the kernel does.
func TestWithTheKernel(t *testing.T) {
	root := kernelRoot(t)
	loop := mounttest.LoopDevice(t, 1<<20)
	var st unix.Stat_t
	if err := unix.Stat(loop.Path, &st); err != nil {
		t.Fatal(err)
	}
	device := cgroup.Number{Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)}
	group := layouts(uidA)["systemd, Burstable"]
	if err := os.MkdirAll(filepath.Join(root, filepath.Dir(group)), 0o755); err != nil {
		t.Fatal(err)
	}
	watch, err := cgroup.OpenWatch(root)
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{t: t, root: root, told: make(chan string, 100), Watch: watch}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- watch.Run(ctx, func(uid string) { w.told <- uid }) }()
	w.make(group)
	w.expect(uidA)

	pods := cgroup.NewPods(cgroup.Mounted{Root: root})
	if err := pods.Check(); err != nil {
		t.Fatal(err)
	}
	limits := func() string {
		content, err := os.ReadFile(filepath.Join(root, group, "io.max"))
		if err != nil {
			t.Error(err)
		}
		return string(content)
	}
	for _, step := range []struct {
		limits volume.Limits
		want   string
	}{
		{volume.Limits{}, ""},
		{volume.Limits{ReadIOPS: 100, WriteBytesPerSecond: 1 << 20}, device.String() + " rbps=max wbps=1048576 riops=100 wiops=max\n"},
		{volume.Limits{ReadIOPS: 1<<32 - 2, WriteIOPS: 1, ReadBytesPerSecond: 1<<63 - 1}, device.String() + " rbps=9223372036854775807 wbps=max riops=4294967294 wiops=1\n"},
		{volume.Limits{}, ""},
	} {
		if err := pods.Limit(uidA, device, step.limits); err != nil {
			t.Fatalf("%+v: %v", step.limits, err)
		}
		if step.want == "" && step.limits.IsZero() {
			if _, err := os.Stat(filepath.Join(root, group, "io.max")); errors.Is(err, os.ErrNotExist) {
				continue
			}
		}
		if got := limits(); got != step.want {
			t.Errorf("%+v: io.max has %q, want %q", step.limits, got, step.want)
		}
	}
	if err := pods.Limit(uidA, cgroup.Number{Major: 254, Minor: 1<<20 - 1}, volume.Limits{ReadIOPS: 1}); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("no such device: %v", err)
	}

	// Who loses the controller loses the limits, and gets them back when a container comes.
	if err := pods.Limit(uidA, device, volume.Limits{ReadIOPS: 7}); err != nil {
		t.Fatal(err)
	}
	if err := watch.Follow(uidA); err != nil {
		t.Fatal(err)
	}
	if err := (cgroup.Mounted{Root: root}).Write(filepath.Dir(group)+"/cgroup.subtree_control", "-io"); err != nil {
		t.Fatal(err)
	}
	w.make(group + "/cri-containerd-1.scope")
	w.expect(uidA)
	if err := pods.Limit(uidA, device, volume.Limits{ReadIOPS: 7}); err != nil {
		t.Fatal(err)
	}
	if got := limits(); !strings.Contains(got, "riops=7") {
		t.Errorf("io.max has %q", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
