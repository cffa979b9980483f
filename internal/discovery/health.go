// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
)

// Health is what somebody has found out about the health of a disk. It becomes the
// condition Healthy of its object; a disk of which it is False is handed out to
// nobody.
type Health struct {
	Status          metav1.ConditionStatus
	Reason, Message string
}

// HealthTarget is a disk whose health can be found out.
type HealthTarget struct {
	// Name of its BlockDevice.
	Name string
	// KernelName and Path at this moment, and the kernel's number for this very
	// appearance of it.
	KernelName, Path string
	DiskSeq          uint64
}

// selfTelling are the transports of disks that can say how they are. Those over a
// network, and what a hypervisor invents, cannot.
var selfTelling = []string{"nvme", "sata", "ata", "sas", "scsi"}

// HealthTargets returns the disks that may be asked for their health, sorted by
// name: whole ones that the kernel shows once.
func (inv *Inventory) HealthTargets() []HealthTarget {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	var targets []HealthTarget
	for name, kernelNames := range inv.index {
		if len(kernelNames) != 1 {
			continue
		}
		d := inv.devices[kernelNames[0]]
		if d == nil || d.Type != block.TypeDisk || !slices.Contains(selfTelling, d.Transport) {
			continue
		}
		targets = append(targets, HealthTarget{Name: name, KernelName: d.KernelName, Path: d.Path, DiskSeq: d.DiskSeq})
	}
	slices.SortFunc(targets, func(a, b HealthTarget) int { return strings.Compare(a.Name, b.Name) })
	return targets
}

// SetHealth takes in what was found out about a disk. It stands until the next call
// for it.
func (inv *Inventory) SetHealth(name string, h Health) {
	inv.mu.Lock()
	entry := inv.disks[name]
	if entry != nil && (entry.health == nil || *entry.health != h) {
		entry.health = &h
	} else {
		entry = nil // gone meanwhile, or no news
	}
	inv.mu.Unlock()
	if entry != nil {
		inv.queue.Add(name)
	}
}

// FailingDisk is a disk that the kernel shows and whose condition Healthy is False.
type FailingDisk struct {
	// Name of its BlockDevice.
	Name       string
	KernelName string
	// Held is true when a pool or a volume holds it.
	Held    bool
	Message string
}

// Failing returns the disks of this node that are failing, sorted by name.
func (inv *Inventory) Failing() []FailingDisk {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	var failing []FailingDisk
	for name, kernelNames := range inv.index {
		entry := inv.disks[name]
		if entry == nil || entry.object == nil || len(kernelNames) != 1 {
			continue
		}
		h := entry.health
		if h == nil {
			h = healthIn(&entry.object.Status)
		}
		if h != nil && h.Status == metav1.ConditionFalse {
			failing = append(failing, FailingDisk{
				Name: name, KernelName: kernelNames[0], Message: h.Message, Held: stateOf(entry.object) == device.StateClaimed,
			})
		}
	}
	slices.SortFunc(failing, func(a, b FailingDisk) int { return strings.Compare(a.Name, b.Name) })
	return failing
}

// healthIn is the condition as it stands in an object, nil if there is none.
func healthIn(status *v1alpha1.BlockDeviceStatus) *Health {
	c := meta.FindStatusCondition(status.Conditions, v1alpha1.BlockDeviceHealthy)
	if c == nil {
		return nil
	}
	return &Health{Status: c.Status, Reason: c.Reason, Message: c.Message}
}

// addHealth adds what is known of the disk's health: what was found out since this
// process began, or else what its object remembers.
func (inv *Inventory) addHealth(name string, f *facts) {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	if entry := inv.disks[name]; entry != nil && entry.health != nil {
		f.health = entry.health
		return
	}
	f.health = healthIn(&f.status)
}

// failing refuses a disk that is known to be failing.
func (f *facts) failing(*block.Device) (verdict, bool) {
	if f.health == nil || f.health.Status != metav1.ConditionFalse {
		return verdict{}, false
	}
	return no(v1alpha1.ReasonFailing, "not handed out, for it is failing: %s", f.health.Message), true
}

// setHealthy writes the condition.
func setHealthy(bd *v1alpha1.BlockDevice, h *Health) {
	if h == nil {
		return
	}
	meta.SetStatusCondition(&bd.Status.Conditions, metav1.Condition{
		Type: v1alpha1.BlockDeviceHealthy, Status: h.Status, Reason: h.Reason, Message: truncated(h.Message),
	})
}

// reportHealth tells when a disk begins to fail, is worn, or is well again.
func (inv *Inventory) reportHealth(old, bd *v1alpha1.BlockDevice) {
	now := healthIn(&bd.Status)
	var was *Health
	if old != nil {
		was = healthIn(&old.Status)
	}
	if now == nil || was != nil && was.Status == now.Status && was.Reason == now.Reason {
		return
	}
	kind := corev1.EventTypeWarning
	switch {
	case now.Status == metav1.ConditionUnknown:
		return // that nobody can tell is no news of the disk
	case now.Reason == v1alpha1.ReasonGood:
		if was == nil || was.Status == metav1.ConditionUnknown {
			return
		}
		kind = corev1.EventTypeNormal
	}
	inv.log.Info("disk's health", "blockDevice", bd.Name, "path", bd.Status.Path, "reason", now.Reason, "message", now.Message)
	inv.opts.Recorder.Eventf(bd, nil, kind, now.Reason, "Health", "%s: %s", bd.Status.Path, now.Message)
}
