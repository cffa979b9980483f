// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup_test

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/berth-dev/berth/pkg/cgroup"
	"github.com/berth-dev/berth/pkg/cgroup/cgrouptest"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	uidA = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
	uidB = "11111111-2222-4333-8444-555555555555"
)

var (
	volumeA = cgroup.Number{Major: 253, Minor: 3}
	volumeB = cgroup.Number{Major: 8, Minor: 16}
)

var escaped = strings.NewReplacer("-", "_")

// layouts are the groups of a pod under both drivers of kubelet, in each QoS class.
func layouts(uid string) map[string]string {
	slices := escaped.Replace(uid)
	return map[string]string{
		"cgroupfs, Guaranteed":          "kubepods/pod" + uid,
		"cgroupfs, Burstable":           "kubepods/burstable/pod" + uid,
		"cgroupfs, BestEffort":          "kubepods/besteffort/pod" + uid,
		"systemd, Guaranteed":           "kubepods.slice/kubepods-pod" + slices + ".slice",
		"systemd, Burstable":            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + slices + ".slice",
		"systemd, BestEffort":           "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + slices + ".slice",
		"cgroupfs in kind, Burstable":   "kubelet/kubepods/burstable/pod" + uid,
		"systemd in kind, BestEffort":   "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod" + slices + ".slice",
		"systemd below a root, its own": "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + slices + ".slice",
	}
}

func newTree() *cgrouptest.Tree {
	tree := cgrouptest.New([]string{"cpu", "io", "memory"}, volumeA.String(), volumeB.String())
	tree.Make("system.slice/kubelet.service")
	return tree
}

// limitsOf reads io.max of a group.
func limitsOf(t *testing.T, tree *cgrouptest.Tree, group string) string {
	t.Helper()
	content, err := tree.Read(group + "/io.max")
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestLimitFindsThePodOfEveryDriverAndClass(t *testing.T) {
	t.Parallel()
	for name, group := range layouts(uidA) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tree := newTree()
			tree.Make(group)
			other := layouts(uidB)[name]
			tree.Make(other)
			pods := cgroup.NewPods(tree)
			if got, err := pods.Find(uidA); err != nil || got != group {
				t.Fatalf("found %q, %v", got, err)
			}
			if err := pods.Limit(uidA, volumeA, volume.Limits{ReadIOPS: 100, WriteBytesPerSecond: 1 << 20}); err != nil {
				t.Fatal(err)
			}
			if got, want := limitsOf(t, tree, group), "253:3 rbps=max wbps=1048576 riops=100 wiops=max\n"; got != want {
				t.Errorf("io.max has %q", got)
			}
			if got := limitsOf(t, tree, other); got != "" {
				t.Errorf("the other pod's io.max has %q", got)
			}
			// The controller is enabled from the root to the pod's parent, and no further.
			for dir := path.Dir(group); ; dir = path.Dir(dir) {
				if got, err := tree.Read(path.Join(dir, "cgroup.subtree_control")); err != nil || got != "io\n" {
					t.Errorf("%s hands down %q, %v", dir, got, err)
				}
				if dir == "." {
					break
				}
			}
			for _, dir := range []string{group, "system.slice"} {
				if got, err := tree.Read(dir + "/cgroup.subtree_control"); err != nil || got != "\n" {
					t.Errorf("%s hands down %q, %v", dir, got, err)
				}
			}
		})
	}
}

func TestLimitChangesAndTakesAway(t *testing.T) {
	t.Parallel()
	tree := newTree()
	group := layouts(uidA)["systemd, Burstable"]
	tree.Make(group)
	pods := cgroup.NewPods(tree)
	steps := []struct {
		device cgroup.Number
		limits volume.Limits
		want   string
		writes int
	}{
		{volumeA, volume.Limits{}, "", 0},
		{volumeA, volume.Limits{ReadIOPS: 100}, "253:3 rbps=max wbps=max riops=100 wiops=max\n", 4},
		{volumeA, volume.Limits{ReadIOPS: 100}, "253:3 rbps=max wbps=max riops=100 wiops=max\n", 0},
		{volumeB, volume.Limits{WriteIOPS: 7}, "253:3 rbps=max wbps=max riops=100 wiops=max\n8:16 rbps=max wbps=max riops=max wiops=7\n", 1},
		{volumeA, volume.Limits{WriteBytesPerSecond: 5}, "253:3 rbps=max wbps=5 riops=max wiops=max\n8:16 rbps=max wbps=max riops=max wiops=7\n", 1},
		{volumeA, volume.Limits{}, "8:16 rbps=max wbps=max riops=max wiops=7\n", 1},
		{volumeB, volume.Limits{}, "", 1},
	}
	for i, step := range steps {
		if err := pods.Limit(uidA, step.device, step.limits); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if writes := tree.Writes(); len(writes) != step.writes {
			t.Errorf("step %d wrote %q", i, writes)
		}
		if step.want == "" && i == 0 {
			continue // the controller is not enabled yet
		}
		if got := limitsOf(t, tree, group); got != step.want {
			t.Errorf("step %d: io.max has %q, want %q", i, got, step.want)
		}
	}
}

// systemd takes a controller away that none of its units asks for.
func TestLimitPutsBackWhatWasLostWithTheController(t *testing.T) {
	t.Parallel()
	tree := newTree()
	group := layouts(uidA)["systemd, BestEffort"]
	tree.Make(group)
	pods := cgroup.NewPods(tree)
	limits := volume.Limits{ReadIOPS: 100}
	if err := pods.Limit(uidA, volumeA, limits); err != nil {
		t.Fatal(err)
	}
	if err := tree.Write(path.Dir(group)+"/cgroup.subtree_control", "-io"); err != nil {
		t.Fatal(err)
	}
	if err := pods.Limit(uidA, volumeA, limits); err != nil {
		t.Fatal(err)
	}
	if got := limitsOf(t, tree, group); got != "253:3 rbps=max wbps=max riops=100 wiops=max\n" {
		t.Errorf("io.max has %q", got)
	}
}

func TestPodWithoutAGroupIsNotFound(t *testing.T) {
	t.Parallel()
	tree := newTree()
	pods := cgroup.NewPods(tree)
	limits := volume.Limits{ReadIOPS: 1}
	if err := pods.Limit(uidA, volumeA, limits); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("before kubelet has made any: %v", err)
	}
	group := layouts(uidA)["cgroupfs, Burstable"]
	tree.Make(group)
	if err := pods.Limit(uidB, volumeA, limits); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("another pod: %v", err)
	}
	// It ends between two looks.
	tree.Fail = func(verb, name string) error {
		if verb == "write" && strings.HasSuffix(name, "io.max") {
			go tree.Remove(group)
			return syscall.ENODEV
		}
		return nil
	}
	for range 1000 {
		err := pods.Limit(uidA, volumeA, limits)
		if errors.Is(err, volume.ErrNotFound) {
			return
		}
	}
	t.Error("a pod that is gone is never said to be")
}

func TestLimitSaysWhatFailed(t *testing.T) {
	t.Parallel()
	group := layouts(uidA)["systemd, Burstable"]
	limits := volume.Limits{ReadIOPS: 100}
	for name, test := range map[string]struct {
		fail func(verb, name string) error
		want error
		says string
	}{
		"the controller cannot be enabled": {func(verb, name string) error {
			if verb == "write" && name == "kubepods.slice/cgroup.subtree_control" {
				return syscall.EPERM
			}
			return nil
		}, cgroup.ErrNotEnforceable, "below the group kubepods.slice"},
		"the limit is refused": {func(verb, name string) error {
			if verb == "write" && path.Base(name) == "io.max" {
				return syscall.EINVAL
			}
			return nil
		}, syscall.EINVAL, "limit pod " + uidA + " on device 253:3"},
		"the hierarchy cannot be read": {func(verb, _ string) error {
			if verb == "read" {
				return syscall.EIO
			}
			return nil
		}, syscall.EIO, ""},
	} {
		tree := newTree()
		tree.Make(group)
		tree.Fail = test.fail
		err := cgroup.NewPods(tree).Limit(uidA, volumeA, limits)
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", name, err)
		}
		tree.Fail = nil
		if err := cgroup.NewPods(tree).Limit(uidA, volumeA, limits); err != nil {
			t.Errorf("%s: the next try: %v", name, err)
		}
	}
	tree := newTree()
	tree.Make(group)
	if err := cgroup.NewPods(tree).Limit(uidA, cgroup.Number{Major: 1, Minor: 2}, limits); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("no such device: %v", err)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	group := layouts(uidA)["systemd, Burstable"]
	withPods := func(tree *cgrouptest.Tree) *cgrouptest.Tree { tree.Make(group); return tree }
	enabled := func(tree *cgrouptest.Tree) *cgrouptest.Tree {
		withPods(tree)
		if err := tree.Write("cgroup.subtree_control", "+io"); err != nil {
			t.Fatal(err)
		}
		return tree
	}
	broken := newTree()
	broken.Fail = func(string, string) error { return syscall.EIO }
	v1 := newTree()
	v1.Fail = func(_, name string) error { return &fs.PathError{Op: "open", Path: name, Err: syscall.ENOENT} }
	for name, test := range map[string]struct {
		tree *cgrouptest.Tree
		want error
	}{
		"not enabled yet":        {withPods(newTree()), nil},
		"enabled":                {enabled(newTree()), nil},
		"before kubelet's start": {newTree(), nil},
		"cgroup v1":              {v1, cgroup.ErrNotEnforceable},
		"no controller io":       {withPods(cgrouptest.New([]string{"cpu", "memory", "iocost"})), cgroup.ErrNotEnforceable},
		"no throttling":          {enabled(newTree().WithoutThrottling()), cgroup.ErrNotEnforceable},
		"cannot be read":         {broken, syscall.EIO},
	} {
		err := cgroup.NewPods(test.tree).Check()
		if !errors.Is(err, test.want) || test.want == nil && err != nil {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
		if !errors.Is(test.want, cgroup.ErrNotEnforceable) && errors.Is(err, cgroup.ErrNotEnforceable) {
			t.Errorf("%s is taken for an answer: %v", name, err)
		}
		if writes := test.tree.Writes(); slices.ContainsFunc(writes, func(w string) bool { return w != "cgroup.subtree_control: +io" }) {
			t.Errorf("%s: it wrote %q", name, writes)
		}
	}
	// Without throttling and before the controller is enabled, it comes out when it is.
	tree := withPods(newTree().WithoutThrottling())
	if err := cgroup.NewPods(tree).Limit(uidA, volumeA, volume.Limits{ReadIOPS: 1}); !errors.Is(err, cgroup.ErrNotEnforceable) {
		t.Errorf("got %v", err)
	}
}
