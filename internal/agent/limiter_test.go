// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/cgroup"
	"github.com/berth-dev/berth/pkg/cgroup/cgrouptest"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	podA = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
	podB = "11111111-2222-4333-8444-555555555555"

	groupA = "kubepods/burstable/pod" + podA
	groupB = "kubepods/besteffort/pod" + podB

	targetA = "/var/lib/kubelet/pods/" + podA + "/volumes/kubernetes.io~csi/pvc-1/mount"
	targetB = "/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-1/" + podB
	staging = "/var/lib/kubelet/plugins/kubernetes.io/csi/berth.dev/0123/globalmount"

	inForce = "253:3 rbps=1048576 wbps=max riops=max wiops=100\n"
)

func someLimits() *v1alpha1.VolumeLimits {
	return &v1alpha1.VolumeLimits{ReadBytesPerSecond: 1 << 20, WriteIOPS: 100}
}

func limited(lv *v1alpha1.LocalVolume) { lv.Spec.Limits = someLimits() }

// published is a host whose volume two pods have.
func published(t *testing.T, mutate ...func(*v1alpha1.LocalVolume)) *host {
	t.Helper()
	h := newHost(t, volume.ModeLVM, localVolume(mutate...))
	h.groups.Make(groupA)
	h.groups.Make(groupB)
	h.mounts = []string{staging, targetA, targetB}
	return h
}

// setLimits changes the spec as the provisioner does.
func (h *host) setLimits(limits *v1alpha1.VolumeLimits) {
	h.t.Helper()
	lv := h.get()
	lv.Spec.Limits = limits
	lv.Generation++
	if err := h.api.Update(h.t.Context(), lv); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) wantIOMax(want string, groups ...string) {
	h.t.Helper()
	for _, group := range groups {
		got, err := h.groups.Read(group + "/io.max")
		if want == "" && err != nil {
			continue // the controller was never enabled
		}
		if err != nil || got != want {
			h.t.Errorf("io.max of %s has %q, %v, want %q", group, got, err, want)
		}
	}
}

func (h *host) wantLimited(status metav1.ConditionStatus, reason string) {
	h.t.Helper()
	lv := h.wantReady()
	c := meta.FindStatusCondition(lv.Status.Conditions, v1alpha1.LocalVolumeLimited)
	if c == nil || c.Status != status || c.Reason != reason {
		h.t.Errorf("condition %+v, want %s %s", c, status, reason)
	}
	if status == metav1.ConditionTrue && (lv.Status.Limits == nil || *lv.Status.Limits != *lv.Spec.Limits) {
		h.t.Errorf("status.limits %+v", lv.Status.Limits)
	}
}

func (h *host) wantUnlimited() {
	h.t.Helper()
	lv := h.wantReady()
	if lv.Status.Limits != nil || meta.FindStatusCondition(lv.Status.Conditions, v1alpha1.LocalVolumeLimited) != nil {
		h.t.Errorf("status %+v", lv.Status)
	}
	e, err := h.agent.Ledger.Get(lvUID)
	if err != nil || e.Limits != nil {
		h.t.Errorf("ledger %+v, %v", e.Limits, err)
	}
}

func TestLimitsOfALocalVolume(t *testing.T) {
	t.Parallel()
	h := published(t, limited)
	h.settle()
	h.wantLimited(metav1.ConditionTrue, v1alpha1.ReasonInForce)
	h.wantIOMax(inForce, groupA, groupB)
	h.groups.Writes()
	h.settle()
	if writes := h.groups.Writes(); len(writes) > 0 {
		t.Errorf("a repeated call wrote %q", writes)
	}

	h.setLimits(&v1alpha1.VolumeLimits{WriteBytesPerSecond: 4096})
	h.settle()
	h.wantLimited(metav1.ConditionTrue, v1alpha1.ReasonInForce)
	h.wantIOMax("253:3 rbps=max wbps=4096 riops=max wiops=max\n", groupA, groupB)

	h.setLimits(nil)
	h.settle()
	h.wantUnlimited()
	h.wantIOMax("", groupA, groupB)
}

// A volume that never had limits costs nothing more than before.
func TestVolumesWithoutLimitsAreLeftAlone(t *testing.T) {
	t.Parallel()
	h := published(t)
	h.settle()
	h.agent.Limiter.Published(t.Context(), lvName)
	h.agent.Limiter.Published(t.Context(), "another")
	h.agent.Limiter.PodChanged(t.Context(), podA)
	if writes := h.groups.Writes(); len(writes) > 0 || h.follows.Load() > 0 {
		t.Errorf("wrote %q, followed %d", writes, h.follows.Load())
	}
	h.wantUnlimited()
}

func TestLimitsAreKeptOverARestartOfTheAgent(t *testing.T) {
	t.Parallel()
	h := published(t, limited)
	h.settle()
	writes := h.writes
	// What was limited is lost meanwhile, as with a reboot.
	h.groups.Remove("kubepods")
	h.groups.Make(groupA)
	h.groups.Make(groupB)
	h.start()
	h.settle()
	h.wantIOMax(inForce, groupA, groupB)
	if h.writes != writes {
		t.Errorf("%d writes to the API server", h.writes-writes)
	}
	// The API server is away when the agent begins.
	h.groups.Remove("kubepods")
	h.groups.Make(groupA)
	h.start()
	h.agent.Limiter.Resume(t.Context(), h.agent.Ledger.All())
	h.wantIOMax(inForce, groupA)
	h.groups.Make(groupB)
	h.agent.Limiter.PodChanged(t.Context(), podB)
	h.wantIOMax(inForce, groupB)
	// The spec changed while the agent was away.
	h.setLimits(nil)
	h.start()
	h.settle()
	h.wantUnlimited()
	h.wantIOMax("", groupA, groupB)
}

// Kubelet may make the pod's cgroup after the volume is published.
func TestPodWhoseGroupComesLaterIsLimited(t *testing.T) {
	t.Parallel()
	for name, uid := range map[string]string{"told of": podA, "events were lost": cgroup.Everything} {
		h := newHost(t, volume.ModeLVM, localVolume(limited))
		h.settle()
		h.mounts = []string{staging, targetA}
		h.agent.Limiter.Published(t.Context(), lvName)
		h.settle()
		h.wantLimited(metav1.ConditionTrue, v1alpha1.ReasonInForce)
		h.groups.Make(groupA)
		h.agent.Limiter.PodChanged(t.Context(), podB)
		h.agent.Limiter.PodChanged(t.Context(), uid)
		if t.Logf("%s", name); !h.agent.Limiter.IsHeld(lvName) {
			t.Error("it is not held")
		}
		h.wantIOMax(inForce, groupA)
	}
}

// systemd takes the controller away where no unit asks for it; the first container does.
func TestContainerPutsLostLimitsBack(t *testing.T) {
	t.Parallel()
	h := published(t, limited)
	h.settle()
	if err := h.groups.Write("kubepods/besteffort/cgroup.subtree_control", "-io"); err != nil {
		t.Fatal(err)
	}
	h.agent.Limiter.PodChanged(t.Context(), podB)
	h.wantIOMax(inForce, groupA, groupB)
}

func TestLimitsThatTheNodeCannotEnforce(t *testing.T) {
	t.Parallel()
	without := cgroup.NewPods(cgrouptest.New([]string{"cpu", "memory"}))
	t.Run("a new volume is not made", func(t *testing.T) {
		t.Parallel()
		h := published(t, limited)
		h.agent.Limiter.Pods = without
		h.settle()
		h.wantCondition(metav1.ConditionFalse, v1alpha1.ReasonNotEnforceable)
		h.wantNothing()
		if c := meta.FindStatusCondition(h.get().Status.Conditions, v1alpha1.LocalVolumeReady); !strings.Contains(c.Message, "no controller io") {
			t.Errorf("message %q", c.Message)
		}
	})
	t.Run("one that is there says so and goes on", func(t *testing.T) {
		t.Parallel()
		h := published(t)
		h.settle()
		works := h.agent.Limiter.Pods
		h.agent.Limiter.Pods = without
		h.setLimits(someLimits())
		h.settle()
		h.wantLimited(metav1.ConditionFalse, v1alpha1.ReasonNotEnforceable)
		if lv := h.get(); lv.Status.Limits != nil || meta.FindStatusCondition(lv.Status.Conditions, v1alpha1.LocalVolumeLimited).ObservedGeneration != lv.Generation {
			t.Errorf("status %+v", lv.Status)
		}
		h.setLimits(nil)
		h.settle()
		h.wantUnlimited()
		h.agent.Limiter.Pods = works
		h.setLimits(someLimits())
		h.settle()
		h.wantLimited(metav1.ConditionTrue, v1alpha1.ReasonInForce)
		h.wantIOMax(inForce, groupA, groupB)
	})
}

func TestLimitsThatFailAreTriedAgain(t *testing.T) {
	t.Parallel()
	h := published(t, limited)
	h.groups.Fail = func(verb, name string) error {
		if verb == "write" && strings.HasPrefix(name, groupB) {
			return syscall.EINVAL
		}
		return nil
	}
	if err := h.reconcile(); !errors.Is(err, syscall.EINVAL) {
		t.Fatalf("got %v", err)
	}
	h.wantLimited(metav1.ConditionUnknown, v1alpha1.ReasonFailed)
	h.wantIOMax(inForce, groupA) // one pod's trouble is not the other's
	h.agent.Limiter.Published(t.Context(), lvName)
	if h.agent.Limiter.IsHeld(lvName) {
		t.Error("it is held")
	}
	h.groups.Fail = nil
	h.settle()
	h.wantLimited(metav1.ConditionTrue, v1alpha1.ReasonInForce)
	h.wantIOMax(inForce, groupA, groupB)
}

// TestKilledWhileLimiting kills the process at each step of a creation with limits, a
// change, and their removal.
func TestKilledWhileLimiting(t *testing.T) {
	t.Parallel()
	other := &v1alpha1.VolumeLimits{ReadIOPS: 7}
	for n := 0; ; n++ {
		h := published(t, limited)
		died := false
		step := func(change func()) {
			change()
			h.killer.arm(n)
			_ = h.reconcile()
			died = died || h.killer.died()
			h.start()
			h.settle()
		}
		step(func() {})
		h.wantLimited(metav1.ConditionTrue, v1alpha1.ReasonInForce)
		h.wantIOMax(inForce, groupA, groupB)
		step(func() { h.setLimits(other) })
		h.wantLimited(metav1.ConditionTrue, v1alpha1.ReasonInForce)
		h.wantIOMax("253:3 rbps=max wbps=max riops=7 wiops=max\n", groupA, groupB)
		step(func() { h.setLimits(nil) })
		h.wantUnlimited()
		h.wantIOMax("", groupA, groupB)
		if t.Failed() {
			t.Fatalf("killed at step %d", n)
		}
		if !died {
			if n < 8 {
				t.Errorf("only %d steps were tried", n)
			}
			return
		}
	}
}

// Pods come while the limits are changed: the last word counts for all.
func TestLimitsWhilePodsComeAndGo(t *testing.T) {
	t.Parallel()
	h := published(t, limited)
	h.settle()
	ctx, cancel := context.WithCancel(t.Context())
	var others sync.WaitGroup
	for _, act := range []func(){
		func() { h.agent.Limiter.Published(ctx, lvName) },
		func() { h.agent.Limiter.PodChanged(ctx, podA) },
		func() { h.agent.Limiter.PodChanged(ctx, cgroup.Everything) },
		func() { h.agent.Limiter.IsHeld(lvName) },
	} {
		others.Go(func() {
			for ctx.Err() == nil {
				act()
			}
		})
	}
	for i := range int64(100) {
		if err := h.agent.Limiter.Set(t.Context(), lvName, volume.Limits{ReadIOPS: i + 1}); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	others.Wait()
	h.wantIOMax("253:3 rbps=max wbps=max riops=100 wiops=max\n", groupA, groupB)
}

func TestPodOfTarget(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		targetA: podA, targetB: podB, staging: "",
		"/data/kubelet/pods/" + podA + "/volumes/kubernetes.io~csi/pv/mount":                                         podA,
		"/var/lib/kubelet/pods/" + podA + "/volumes/kubernetes.io~empty-dir/pv/mount":                                "",
		"/var/lib/kubelet/pods/" + podA + "/volumes/kubernetes.io~csi/pv/mount/pods/" + podB:                         "",
		"/var/lib/kubelet/pods/" + podA + "/volume-subpaths/pv/main/0":                                               "",
		"/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/staging/pv":                                        "",
		"/var/lib/kubelet/pods/not-a-uid/volumes/kubernetes.io~csi/pv/mount":                                         "",
		"/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pv/" + podB + "/x":                         "",
		"/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/pv/dev/" + podB:                                    "",
		"/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/" + podB:                                   "",
		"/var/lib/kubelet/pods/" + strings.ToUpper(podA) + "/volumes/kubernetes.io~csi/pv/mount":                     "",
		"/var/lib/kubelet/pods/" + podA + "/volumes/kubernetes.io~csi/../../" + podB + "/volumes/kubernetes.io~csi/": "",
	} {
		if got, ok := podOfTarget(path); got != want || ok != (want != "") {
			t.Errorf("%s is of pod %q, want %q", path, got, want)
		}
	}
}

func FuzzPodOfTarget(f *testing.F) {
	f.Add(targetA)
	f.Add(targetB)
	f.Fuzz(func(t *testing.T, path string) {
		if uid, ok := podOfTarget(path); ok && (len(uid) != 36 || strings.ContainsAny(uid, "/.") || !strings.Contains(path, uid)) {
			t.Errorf("%q is of pod %q", path, uid)
		}
	})
}
