// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func TestLocalVolumeValidation(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		change  func(*v1alpha1.LocalVolume)
		refused string // "" for allowed
	}{
		{"as it is", func(*v1alpha1.LocalVolume) {}, ""},
		{"no node", func(v *v1alpha1.LocalVolume) { v.Spec.NodeName = "" }, "spec.nodeName"},
		{"unknown mode", func(v *v1alpha1.LocalVolume) { v.Spec.Mode = "nvme" }, "spec.mode"},
		{"lvm without a pool", func(v *v1alpha1.LocalVolume) { v.Spec.Pool = "" }, "spec.pool is needed"},
		{"device with a pool", func(v *v1alpha1.LocalVolume) { v.Spec.Mode = v1alpha1.ModeDevice }, "spec.pool is needed"},
		{"device", func(v *v1alpha1.LocalVolume) { v.Spec.Mode, v.Spec.Pool = v1alpha1.ModeDevice, "" }, ""},
		{"block volume in hostpath", func(v *v1alpha1.LocalVolume) {
			v.Spec.Mode, v.Spec.VolumeMode, v.Spec.FSType = v1alpha1.ModeHostpath, v1alpha1.VolumeBlock, ""
		}, "mode hostpath has no block volumes"},
		{"no size", func(v *v1alpha1.LocalVolume) { v.Spec.SizeBytes = 0 }, "spec.sizeBytes"},
		{"unknown filesystem", func(v *v1alpha1.LocalVolume) { v.Spec.FSType = "btrfs" }, "spec.fsType"},
		{"options of mkfs", func(v *v1alpha1.LocalVolume) { v.Spec.MkfsOptions = []string{"-m", "1"} }, ""},
		{"options of mkfs without a filesystem", func(v *v1alpha1.LocalVolume) {
			v.Spec.VolumeMode, v.Spec.FSType, v.Spec.MkfsOptions = v1alpha1.VolumeBlock, "", []string{"-m", "1"}
		}, "spec.mkfsOptions needs spec.fsType"},
		{"adopt", adopt, ""},
		{"adopt without wipe none", func(v *v1alpha1.LocalVolume) { adopt(v); v.Spec.Wipe = "" }, "spec.adopt needs wipe: none"},
		{"adopt in mode lvm", func(v *v1alpha1.LocalVolume) { adopt(v); v.Spec.Mode, v.Spec.Pool = v1alpha1.ModeLVM, "fast" }, "spec.adopt is for a whole disk"},
		{"adopt a block volume", func(v *v1alpha1.LocalVolume) {
			adopt(v)
			v.Spec.VolumeMode, v.Spec.FSType = v1alpha1.VolumeBlock, ""
		}, "spec.adopt is for a whole disk"},
		{"adopt with options of mkfs", func(v *v1alpha1.LocalVolume) { adopt(v); v.Spec.MkfsOptions = []string{"-m", "1"} }, "nothing is formatted"},
		{"adopt no disk", func(v *v1alpha1.LocalVolume) { adopt(v); v.Spec.Adopt.Device = "" }, "spec.adopt.device"},
		{"adopt by a label", func(v *v1alpha1.LocalVolume) { adopt(v); v.Spec.Adopt.FilesystemUUID = "DATA" }, "spec.adopt.filesystemUUID"},
		{"unknown wipe", func(v *v1alpha1.LocalVolume) { v.Spec.Wipe = "shred" }, "spec.wipe"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			volume := localVolume("lv-validation", "node1")
			test.change(volume)
			err := server.admin.Create(t.Context(), volume, client.DryRunAll)
			if test.refused != "" {
				wantRefused(t, err, test.refused)
			} else if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// adopt makes a volume one that is handed over with its disk.
func adopt(v *v1alpha1.LocalVolume) {
	v.Spec.Mode, v.Spec.Pool, v.Spec.Wipe = v1alpha1.ModeDevice, "", v1alpha1.WipeNone
	v.Spec.Adopt = &v1alpha1.Adoption{Device: "bd-0123456789abcdef", FilesystemUUID: "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11"}
}

func TestLocalVolumeChanges(t *testing.T) {
	t.Parallel()
	volume := localVolume("lv-changes", "node1")
	if err := server.admin.Create(t.Context(), volume); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		change  func(*v1alpha1.LocalVolumeSpec)
		refused string
	}{
		{"grows", func(s *v1alpha1.LocalVolumeSpec) { s.SizeBytes *= 2 }, ""},
		{"shrinks", func(s *v1alpha1.LocalVolumeSpec) { s.SizeBytes /= 2 }, "spec.sizeBytes only grows"},
		{"moves", func(s *v1alpha1.LocalVolumeSpec) { s.NodeName = "node2" }, "spec.nodeName is immutable"},
		{"another mode", func(s *v1alpha1.LocalVolumeSpec) { s.Mode = v1alpha1.ModeHostpath }, "spec.mode is immutable"},
		{"another pool", func(s *v1alpha1.LocalVolumeSpec) { s.Pool = "slow" }, "spec.pool is immutable"},
		{"another filesystem", func(s *v1alpha1.LocalVolumeSpec) { s.FSType = "xfs" }, "spec.fsType is immutable"},
		{"options of mkfs", func(s *v1alpha1.LocalVolumeSpec) { s.MkfsOptions = []string{"-m", "1"} }, "spec.mkfsOptions is immutable"},
		{"no filesystem", func(s *v1alpha1.LocalVolumeSpec) { s.FSType = "" }, "spec.fsType is immutable"},
		{"a disk with data", func(s *v1alpha1.LocalVolumeSpec) {
			s.Adopt = &v1alpha1.Adoption{Device: "bd-0123456789abcdef", FilesystemUUID: "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11"}
		}, "spec.adopt is immutable"},
		{"a block volume", func(s *v1alpha1.LocalVolumeSpec) { s.VolumeMode = v1alpha1.VolumeBlock }, "spec.volumeMode is immutable"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			changed := volume.DeepCopy()
			test.change(&changed.Spec)
			err := server.admin.Update(t.Context(), changed, client.DryRunAll)
			if test.refused != "" {
				wantRefused(t, err, test.refused)
			} else if err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestPoolSetValidation(t *testing.T) {
	t.Parallel()
	small := resource.MustParse("10Gi")
	tests := []struct {
		name    string
		object  string
		spec    v1alpha1.PoolSetSpec
		refused string
	}{
		{"lvm", "fast", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{MinSize: &small}, Reserve: "5%"}, ""},
		{"lvm without a selector", "fast", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolLVM}, "spec.deviceSelector is needed"},
		{"lvm with a path", "fast", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Hostpath: &v1alpha1.HostpathPool{Path: "/var/lib/x"},
		}, "spec.hostpath is not allowed"},
		{"hostpath", "dirs", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/var/lib/x"}, Reserve: "10Gi"}, ""},
		{"hostpath without a path", "dirs", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolHostpath}, "spec.hostpath.path is needed"},
		{"hostpath with a selector", "dirs", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/var/lib/x"}, DeviceSelector: &v1alpha1.DeviceSelector{},
		}, "spec.deviceSelector is not allowed"},
		{"root of the host", "dirs", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/"}}, "spec.hostpath.path"},
		{"relative path", "dirs", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "var/lib"}}, "spec.hostpath.path"},
		{"path that climbs", "dirs", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/var/lib/../../etc"}}, "must be clean"},
		{"path that stays where it is", "dirs", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/var/./lib"}}, "must be clean"},
		{"path that ends in a slash", "dirs", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/var/lib/x/"}}, "must be clean"},
		{"reserve in words", "fast", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Reserve: "some"}, "spec.reserve"},
		{"name that no volume group can have", "fast.pool", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}}, "volume group's name"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			set := &v1alpha1.PoolSet{Spec: test.spec}
			set.Name = test.object
			err := server.admin.Create(t.Context(), set, client.DryRunAll)
			if test.refused != "" {
				wantRefused(t, err, test.refused)
			} else if err != nil {
				t.Fatal(err)
			}
		})
	}
}
