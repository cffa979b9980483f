// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

// recordOf reads what a LocalVolume's status says was made; nil when it says
// nothing.
func recordOf(lv *v1alpha1.LocalVolume) *volume.Record {
	s := &lv.Status
	r := volume.Record{Mode: volume.Mode(lv.Spec.Mode)}
	if s.Capacity != nil {
		r.SizeBytes = s.Capacity.Value() + encryptionFormat(lv.Spec.Encryption).OverheadBytes()
	}
	switch {
	case s.LVM != nil:
		r.LVM = &volume.LVMRecord{VGName: s.LVM.VGName, VGUUID: s.LVM.VGUUID, LVName: s.LVM.LVName, LVUUID: s.LVM.LVUUID}
	case s.Device != nil:
		r.Device = &volume.DeviceRecord{
			Name:           s.Device.BlockDeviceName,
			IdentityScheme: s.Device.Identity.Scheme,
			IdentityValue:  s.Device.Identity.Value,
			SizeBytes:      s.Device.SizeBytes,
		}
	case s.Hostpath != nil:
		r.Hostpath = &volume.HostpathRecord{Root: s.Hostpath.Root, Directory: s.Hostpath.Directory, RootID: s.Hostpath.RootID}
	default:
		return nil
	}
	return &r
}

// setRecord writes what was made into a status. quality is known of disks only, and
// kept as it is when the record does not change.
func setRecord(s *v1alpha1.LocalVolumeStatus, r volume.Record) {
	switch {
	case r.LVM != nil:
		s.LVM = &v1alpha1.LVMRecord{VGName: r.LVM.VGName, VGUUID: r.LVM.VGUUID, LVName: r.LVM.LVName, LVUUID: r.LVM.LVUUID}
	case r.Device != nil:
		s.Device = &v1alpha1.DeviceRecord{
			BlockDeviceName: r.Device.Name,
			Identity: v1alpha1.DeviceIdentity{
				Scheme:  r.Device.IdentityScheme,
				Value:   r.Device.IdentityValue,
				Quality: qualityOf(r.Device.IdentityScheme),
			},
			SizeBytes: r.Device.SizeBytes,
		}
	case r.Hostpath != nil:
		s.Hostpath = &v1alpha1.HostpathRecord{Root: r.Hostpath.Root, Directory: r.Hostpath.Directory, RootID: r.Hostpath.RootID}
	}
}

// qualityOf follows from the scheme: only the place of a disk is weak evidence.
func qualityOf(scheme string) v1alpha1.IdentityQuality {
	if scheme == "by-path" {
		return v1alpha1.IdentityWeak
	}
	return v1alpha1.IdentityStrong
}
