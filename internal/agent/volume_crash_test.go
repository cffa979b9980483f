// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

func kinds() map[string]func(*v1alpha1.LocalVolume) {
	return map[string]func(*v1alpha1.LocalVolume){
		"lvm filesystem": func(*v1alpha1.LocalVolume) {},
		"lvm block": func(lv *v1alpha1.LocalVolume) {
			lv.Spec.VolumeMode, lv.Spec.FSType = v1alpha1.VolumeBlock, ""
		},
		"device filesystem": func(lv *v1alpha1.LocalVolume) {
			lv.Spec.Mode, lv.Spec.Pool, lv.Spec.FSType = v1alpha1.ModeDevice, "", "xfs"
		},
		"hostpath": func(lv *v1alpha1.LocalVolume) {
			lv.Spec.Mode, lv.Spec.Pool, lv.Spec.FSType = v1alpha1.ModeHostpath, "dirs", ""
		},
	}
}

// TestKilledAtEveryStep kills the process at each step of a creation and then of a
// deletion; what follows must converge, with nothing leaked and nothing twice (I7).
func TestKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	for name, mutate := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lv := localVolume(mutate)
			create, remove := 0, 0
			for n := 0; ; n++ {
				h := newHost(t, volume.Mode(lv.Spec.Mode), lv.DeepCopy())
				h.killer.arm(n)
				_ = h.reconcile()
				died := h.killer.died()
				h.memory.Reboot()
				h.start()
				h.settle()
				h.wantReady()
				if lv.Spec.FSType != "" && h.mkfs != 1 {
					t.Fatalf("killed at step %d: %d filesystems were finished", n, h.mkfs)
				}
				if !died {
					break
				}
				create = n
			}
			for n := 0; ; n++ {
				h := newHost(t, volume.Mode(lv.Spec.Mode), lv.DeepCopy())
				h.settle()
				h.delete()
				h.killer.arm(n)
				_ = h.reconcile()
				died := h.killer.died()
				h.memory.Reboot()
				h.start()
				h.settle()
				if h.get() != nil {
					t.Fatalf("killed at step %d: the object is still there: %+v", n, h.get())
				}
				h.wantNothing()
				if !died {
					break
				}
				remove = n
			}
			if create < 5 || remove < 5 {
				t.Errorf("only %d steps of creation and %d of deletion were tried", create, remove)
			}
		})
	}
}

// TestKilledWhileCreatingThenDeleted deletes a volume whose creation was cut short.
func TestKilledWhileCreatingThenDeleted(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		h := newHost(t, volume.ModeLVM, localVolume())
		h.killer.arm(n)
		_ = h.reconcile()
		died := h.killer.died()
		h.memory.Reboot()
		h.start()
		h.delete()
		h.settle()
		if h.get() != nil {
			t.Fatalf("killed at step %d: the object is still there", n)
		}
		h.wantNothing()
		if !died {
			return
		}
	}
}

// TestKilledTwice cuts the repair short as well.
func TestKilledTwice(t *testing.T) {
	t.Parallel()
	for first := 0; ; first++ {
		for second := 0; ; second++ {
			h := newHost(t, volume.ModeLVM, localVolume())
			h.killer.arm(first)
			_ = h.reconcile()
			diedFirst := h.killer.died()
			h.start()
			h.killer.arm(second)
			_ = h.reconcile()
			diedSecond := h.killer.died()
			h.start()
			h.settle()
			h.wantReady()
			if h.mkfs > 1 {
				t.Fatalf("killed at %d and %d: formatted %d times", first, second, h.mkfs)
			}
			if !diedFirst {
				return
			}
			if !diedSecond {
				break
			}
		}
	}
}
