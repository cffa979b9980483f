// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
)

func condition(status *v1alpha1.BlockDeviceStatus) *metav1.Condition {
	return meta.FindStatusCondition(status.Conditions, v1alpha1.BlockDeviceUsable)
}

// setUsable writes the verdict into the condition that kubectl shows as REASON.
func setUsable(bd *v1alpha1.BlockDevice, v verdict) {
	state := metav1.ConditionFalse
	if v.usable {
		state = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&bd.Status.Conditions, metav1.Condition{
		Type: v1alpha1.BlockDeviceUsable, Status: state, Reason: v.reason, Message: truncated(v.message),
	})
}

// truncated keeps a message within what a condition and an Event (1024 bytes) may
// hold.
func truncated(message string) string {
	const limit = 900
	if len(message) <= limit {
		return strings.ToValidUTF8(message, "\uFFFD") // as the API server would store it
	}
	return strings.ToValidUTF8(message[:limit], "") + "…"
}

// newObject is the object of a disk that is seen for the first time.
func newObject(name, node string) *v1alpha1.BlockDevice {
	return &v1alpha1.BlockDevice{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.BlockDeviceSpec{NodeName: node},
		Status:     v1alpha1.BlockDeviceStatus{ClaimState: v1alpha1.ClaimStateUnclaimed},
	}
}

// describe brings an object up to date with the facts and the verdict. It does not
// touch claims.
func describe(bd *v1alpha1.BlockDevice, f *facts, v verdict, machineID, parent string) {
	s := &bd.Status
	if s.ClaimState == "" {
		s.ClaimState = v1alpha1.ClaimStateUnclaimed
		if bd.Spec.ClaimRef != nil {
			s.ClaimState = v1alpha1.ClaimStateClaimed
		}
	}
	setUsable(bd, v)
	setHealthy(bd, f.health)
	if s.Wipe != nil {
		s.Wipe.DoneBytes = f.wiped
	}
	if !f.identity.Weak && !f.identity.Zero() {
		metav1.SetMetaDataLabel(&bd.ObjectMeta, v1alpha1.LabelIdentity, identityLabel(f.identity))
	}
	if len(f.devices) == 0 {
		s.State = v1alpha1.DeviceInactive
		s.Path, s.DevLinks, s.Holders, s.Partitions = "", nil, nil, nil
		if s.Filesystem != nil {
			s.Filesystem.MountPoints = nil
		}
		return
	}
	d := f.devices[0]
	s.State = v1alpha1.DeviceActive
	if v.reason == v1alpha1.ReasonUnreadable {
		s.State = v1alpha1.DeviceUnknown
	}
	held := bd.Spec.ClaimRef != nil
	s.Path, s.DevLinks = d.Path, stableLinks(d.Links)
	if len(f.devices) > 1 {
		s.Path = joinPaths(f.devices)
	}
	if !keepsSize(s) {
		s.SizeBytes = d.SizeBytes
	}
	s.LogicalBlockSizeBytes, s.PhysicalBlockSizeBytes = d.LogicalBlockSizeBytes, d.PhysicalBlockSizeBytes
	s.DeviceType, s.Transport = string(d.Type), d.Transport
	s.Vendor, s.Model, s.Serial, s.FirmwareRevision = d.Vendor, d.Model, d.Serial, d.FirmwareRevision
	s.WWN = firstOf(d.WWN, d.NGUID, d.EUI64)
	s.Rotational, s.Removable, s.ReadOnly = d.Rotational, d.Removable, d.ReadOnly
	if f.content != nil && f.content.err == nil {
		s.CryptoErase = f.content.cryptoErase
	}
	s.Parent = parent
	s.LastSeen = f.lastSeen()
	if held {
		s.LastSeen = nil // it has begun a new life here
	}
	s.Partitions = d.Partitions
	s.Identity = &v1alpha1.DeviceIdentity{Scheme: f.identity.Scheme, Value: f.identity.Value, Quality: v1alpha1.IdentityStrong}
	if f.identity.Weak {
		s.Identity.Quality = v1alpha1.IdentityWeak
	}
	// A claim belongs to the machine it was made on; it is not carried over to
	// another one that has taken the node's name.
	if !held || s.MachineID == "" {
		s.MachineID = machineID
	}
	// What stands on a disk that Berth itself holds comes and goes with the volumes,
	// and is told by their objects: it would cost a write for each of them.
	s.Holders = nil
	var points []string
	if !held {
		s.Holders = d.Holders
		points = mountPoints(f.usage, d.KernelName)
	}
	if s.ClaimState != v1alpha1.ClaimStateReleased || f.content != nil { // a wipe takes it away bit by bit
		s.Filesystem = filesystem(d, f.content, points)
	}
}

// keepsSize reports whether the size stays that of the disk that was released, by which the
// cleaner knows it: a serial number that a hypervisor gives to a slot comes back with
// whatever disk is there next.
func keepsSize(s *v1alpha1.BlockDeviceStatus) bool {
	return s.ClaimState == v1alpha1.ClaimStateReleased && s.Wipe != nil && s.Wipe.Token != "" && s.SizeBytes > 0
}

// filesystem is what to show of the content: what the probe has found, or, for a
// disk that was not probed because nothing depends on it, what udev has noted.
func filesystem(d *block.Device, content *examination, mountPoints []string) *v1alpha1.BlockDeviceFilesystem {
	fs := v1alpha1.BlockDeviceFilesystem{
		Type: d.UdevContent.FSType, UUID: d.UdevContent.FSUUID, Label: d.UdevContent.FSLabel, MountPoints: mountPoints,
	}
	if content != nil && content.err == nil {
		fs.Type, fs.UUID, fs.Label = content.found.Type, content.found.UUID, content.found.Label
	}
	if fs.Type == "" && len(mountPoints) == 0 {
		return nil
	}
	return &fs
}

// stableLinks leaves out the links that follow the content, or a counter of the
// kernel's: they change without the disk being another one.
func stableLinks(links []string) []string {
	var stable []string
	for _, link := range links {
		if strings.HasPrefix(link, "/dev/disk/by-id/") || strings.HasPrefix(link, "/dev/disk/by-path/") {
			stable = append(stable, link)
		}
	}
	return stable
}

func joinPaths(devices []*block.Device) string {
	var paths []string
	for _, d := range devices {
		paths = append(paths, d.Path)
	}
	slices.Sort(paths)
	return strings.Join(paths, ",")
}

func firstOf(values ...string) string {
	for _, value := range values {
		if value != "" {
			return value
		}
	}
	return ""
}
