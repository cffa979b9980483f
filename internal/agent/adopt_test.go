// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/device/devicetest"
	"github.com/berth-dev/berth/pkg/volume"
)

const handedUUID = "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11"

// handedDisk is the one disk of a node, with a filesystem that was there before Berth.
type handedDisk struct {
	disks    *devicetest.Host
	registry *devicetest.Registry
	content  string
}

func newHandedDisk(t *testing.T) *handedDisk {
	t.Helper()
	d := &handedDisk{disks: devicetest.NewFileHost(t, 16*mib)}
	d.registry = devicetest.NewRegistry(d.disks)
	if err := os.WriteFile(d.path(), fsContent("ext4", handedUUID), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.path(), 16*mib); err != nil {
		t.Fatal(err)
	}
	d.content = d.read(t)
	return d
}

func (d *handedDisk) path() string { return d.disks.Disks()[0].Path }

func (d *handedDisk) read(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(d.path())
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// Probe implements device.Prober.
func (d *handedDisk) Probe(_ context.Context, path string) (block.Content, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return block.Content{}, err
	}
	words := strings.Fields(strings.TrimRight(string(data), "\x00"))
	if len(words) != 3 {
		return block.Content{}, nil
	}
	return block.Content{Found: true, Type: words[1], UUID: words[2]}, nil
}

func (d *handedDisk) backend() volume.Backend {
	return device.New(device.Options{
		Registry: d.registry, Disks: d.registry.Opener(), Prober: d, Log: slog.New(slog.DiscardHandler),
	})
}

func adoptedVolume(lv *v1alpha1.LocalVolume) {
	lv.Spec.Mode, lv.Spec.Pool, lv.Spec.Wipe = v1alpha1.ModeDevice, "", v1alpha1.WipeNone
	lv.Spec.Adopt = &v1alpha1.Adoption{Device: "bd-disk-0", FilesystemUUID: handedUUID}
}

func adoptionHost(t *testing.T, d *handedDisk, mutate ...func(*v1alpha1.LocalVolume)) *host {
	t.Helper()
	h := newHost(t, volume.ModeDevice, localVolume(append([]func(*v1alpha1.LocalVolume){adoptedVolume}, mutate...)...))
	h.disks = d.backend()
	h.start()
	return h
}

func TestAdoptKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		d := newHandedDisk(t)
		h := adoptionHost(t, d)
		h.killer.arm(n)
		_ = h.reconcile()
		died := h.killer.died()
		h.start()
		h.settle()
		lv := h.get()
		if !isReady(lv) || !lv.Status.Formatted || lv.Status.FilesystemUUID != handedUUID || lv.Status.Device.BlockDeviceName != "bd-disk-0" ||
			lv.Status.Capacity.Value() != 16*mib {
			t.Fatalf("killed at step %d: %+v", n, lv.Status)
		}
		// Whatever is lost of what Berth knew, the disk is not formatted.
		h.loseLedger()
		h.settle()
		if h.mkfs != 0 || d.read(t) != d.content {
			t.Fatalf("killed at step %d: the disk was written to", n)
		}
		h.delete()
		h.settle()
		if h.get() != nil || d.read(t) != d.content {
			t.Fatalf("killed at step %d: deleted: %+v", n, h.get())
		}
		if !died {
			if n < 4 {
				t.Errorf("only %d steps", n)
			}
			return
		}
	}
}

// The status and the ledger may both be lost with the disk's claim standing: the disk
// is taken for what it was.
func TestAdoptAfterEverythingWasLost(t *testing.T) {
	t.Parallel()
	d := newHandedDisk(t)
	h := adoptionHost(t, d)
	h.settle()
	h.rollBack()
	h.loseLedger()
	h.settle()
	if lv := h.get(); !isReady(lv) || lv.Status.FilesystemUUID != handedUUID {
		t.Errorf("status %+v", lv.Status)
	}
	if h.mkfs != 0 || d.read(t) != d.content {
		t.Error("the disk was written to")
	}
}

// The disk changes while the volume is being refused: it is looked at again.
func TestAdoptSeesAChangeThatComesMeanwhile(t *testing.T) {
	t.Parallel()
	d := newHandedDisk(t)
	h := adoptionHost(t, d)
	h.agent.Carver.Backends = NewBackends(refusing{d.backend(), func() { h.agent.DiskChanged("bd-disk-0") }})
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	defer queue.ShutDown()
	if err := h.agent.live.Start(t.Context(), queue); err != nil {
		t.Fatal(err)
	}
	if err := h.reconcile(); err != nil {
		t.Fatal(err)
	}
	if queue.Len() != 1 {
		t.Errorf("%d volumes are looked at again, want 1", queue.Len())
	}
}

// refusing is a backend whose disks change at the moment it refuses one.
type refusing struct {
	volume.Backend
	changed func()
}

func (r refusing) Adopt(context.Context, volume.Spec, volume.Adoption) (volume.Record, error) {
	r.changed()
	return volume.Record{}, volume.ErrNotAdoptable
}

// What is on the disk is not what was named: nothing happens until it is.
func TestAdoptWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	d := newHandedDisk(t)
	if err := os.WriteFile(d.path(), make([]byte, 16*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	h := adoptionHost(t, d)
	if err := h.reconcile(); err != nil {
		t.Fatal(err)
	}
	h.wantCondition(metav1.ConditionFalse, v1alpha1.ReasonNotAdoptable)
	if name := h.agent.adopting["bd-disk-0"]; name != lvName {
		t.Errorf("waiting for the disk: %q", name)
	}
	if err := os.WriteFile(d.path(), []byte(d.content), 0o600); err != nil {
		t.Fatal(err)
	}
	h.agent.DiskChanged("bd-disk-0")
	if len(h.agent.adopting) != 0 {
		t.Error("still waiting")
	}
	h.settle()
	if !isReady(h.get()) {
		t.Errorf("status %+v", h.get().Status)
	}
}

// The apiserver refuses these; an agent that is asked all the same does too.
func TestAdoptInvalid(t *testing.T) {
	t.Parallel()
	for name, mutate := range map[string]func(*v1alpha1.LocalVolume){
		"to be wiped": func(lv *v1alpha1.LocalVolume) { lv.Spec.Wipe = v1alpha1.WipeZero },
		"in mode lvm": func(lv *v1alpha1.LocalVolume) { lv.Spec.Mode, lv.Spec.Pool = v1alpha1.ModeLVM, "fast" },
		"no UUID":     func(lv *v1alpha1.LocalVolume) { lv.Spec.Adopt.FilesystemUUID = "" },
		"block": func(lv *v1alpha1.LocalVolume) {
			lv.Spec.VolumeMode, lv.Spec.FSType = v1alpha1.VolumeBlock, ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newHandedDisk(t)
			h := adoptionHost(t, d, mutate)
			_ = h.reconcile()
			h.wantCondition(metav1.ConditionFalse, v1alpha1.ReasonInvalid)
			if h.mkfs != 0 || d.read(t) != d.content {
				t.Error("the disk was written to")
			}
		})
	}
}
