// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
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
		{"enforced size", func(v *v1alpha1.LocalVolume) {
			v.Spec.Mode, v.Spec.FSType, v.Spec.RequireQuota = v1alpha1.ModeHostpath, "", true
		}, ""},
		{"enforced size of a device", func(v *v1alpha1.LocalVolume) { v.Spec.RequireQuota = true }, "spec.requireQuota is for mode hostpath"},
		{"kept", func(v *v1alpha1.LocalVolume) {
			v.Spec.Mode, v.Spec.FSType, v.Spec.RetainFor = v1alpha1.ModeHostpath, "", &metav1.Duration{Duration: 72 * time.Hour}
		}, ""},
		{"kept too short", func(v *v1alpha1.LocalVolume) {
			v.Spec.Mode, v.Spec.FSType, v.Spec.RetainFor = v1alpha1.ModeHostpath, "", &metav1.Duration{}
		}, "spec.retainFor is a duration from 1s to 87600h"},
		{"kept of a logical volume", func(v *v1alpha1.LocalVolume) {
			v.Spec.RetainFor = &metav1.Duration{Duration: time.Hour}
		}, "spec.retainFor is for mode hostpath"},
		{"at a path", func(v *v1alpha1.LocalVolume) {
			v.Spec.Mode, v.Spec.FSType, v.Spec.Directory = v1alpha1.ModeHostpath, "", "shop/db.main"
		}, ""},
		{"at a path that leads out", func(v *v1alpha1.LocalVolume) {
			v.Spec.Mode, v.Spec.FSType, v.Spec.Directory = v1alpha1.ModeHostpath, "", "shop/../../db"
		}, "spec.directory"},
		{"logical volume at a path", func(v *v1alpha1.LocalVolume) { v.Spec.Directory = "shop/db" }, "spec.directory is for mode hostpath"},
		{"no size", func(v *v1alpha1.LocalVolume) { v.Spec.SizeBytes = 0 }, "spec.sizeBytes"},
		{"a key of a logical volume", func(v *v1alpha1.LocalVolume) { v.Spec.Wipe = v1alpha1.WipeCryptoErase }, "spec.wipe: cryptoErase is for mode device"},
		{"a key of any disk", func(v *v1alpha1.LocalVolume) {
			v.Spec.Mode, v.Spec.Pool, v.Spec.Wipe = v1alpha1.ModeDevice, "", v1alpha1.WipeCryptoErase
		}, "deviceSelector.cryptoErase: true"},
		{"a key of disks that have one", func(v *v1alpha1.LocalVolume) {
			yes := true
			v.Spec.Mode, v.Spec.Pool, v.Spec.Wipe = v1alpha1.ModeDevice, "", v1alpha1.WipeCryptoErase
			v.Spec.DeviceSelector = &v1alpha1.DeviceSelector{CryptoErase: &yes}
		}, ""},
		{"unknown filesystem", func(v *v1alpha1.LocalVolume) { v.Spec.FSType = "zfs" }, "spec.fsType"},
		{"options of mkfs", func(v *v1alpha1.LocalVolume) { v.Spec.MkfsOptions = []string{"-m", "1"} }, ""},
		{"options of mkfs without a filesystem", func(v *v1alpha1.LocalVolume) {
			v.Spec.VolumeMode, v.Spec.FSType, v.Spec.MkfsOptions = v1alpha1.VolumeBlock, "", []string{"-m", "1"}
		}, "spec.mkfsOptions needs spec.fsType"},
		{"adopt", adopt, ""},
		{"adopt without wipe none", func(v *v1alpha1.LocalVolume) { adopt(v); v.Spec.Wipe = "" }, "spec.adopt needs wipe: none"},
		{"adopt in mode lvm", func(v *v1alpha1.LocalVolume) { adopt(v); v.Spec.Mode, v.Spec.Pool = v1alpha1.ModeLVM, "fast" }, "spec.adopt is for a directory"},
		{"adopt a block volume", func(v *v1alpha1.LocalVolume) {
			adopt(v)
			v.Spec.VolumeMode, v.Spec.FSType = v1alpha1.VolumeBlock, ""
		}, "or for a whole disk"},
		{"adopt with options of mkfs", func(v *v1alpha1.LocalVolume) { adopt(v); v.Spec.MkfsOptions = []string{"-m", "1"} }, "nothing is formatted"},
		{"adopt no disk", func(v *v1alpha1.LocalVolume) { adopt(v); v.Spec.Adopt.Device = "" }, "spec.adopt.device"},
		{"adopt nothing", func(v *v1alpha1.LocalVolume) { adopt(v); *v.Spec.Adopt = v1alpha1.Adoption{} }, "either a disk"},
		{"adopt a directory", adoptDirectory, ""},
		{"adopt a directory without wipe none", func(v *v1alpha1.LocalVolume) { adoptDirectory(v); v.Spec.Wipe = "" }, "spec.adopt needs wipe: none"},
		{"adopt a directory and a disk", func(v *v1alpha1.LocalVolume) {
			adoptDirectory(v)
			v.Spec.Adopt.Device, v.Spec.Adopt.FilesystemUUID = "bd-0123456789abcdef", "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11"
		}, "either a disk"},
		{"adopt a directory in mode device", func(v *v1alpha1.LocalVolume) { adopt(v); *v.Spec.Adopt = v1alpha1.Adoption{Directory: "/srv/old"} }, "spec.adopt.directory is for mode hostpath"},
		{"adopt a disk in mode hostpath", func(v *v1alpha1.LocalVolume) {
			adopt(v)
			v.Spec.Mode, v.Spec.Pool, v.Spec.FSType = v1alpha1.ModeHostpath, "dirs", ""
		}, "spec.adopt.directory is for mode hostpath"},
		{"adopt a directory to a path", func(v *v1alpha1.LocalVolume) { adoptDirectory(v); v.Spec.Directory = "shop/db" }, "are not allowed beside spec.adopt"},
		{"adopt a directory for a while", func(v *v1alpha1.LocalVolume) {
			adoptDirectory(v)
			v.Spec.RetainFor = &metav1.Duration{Duration: time.Hour}
		}, "are not allowed beside spec.adopt"},
		{"adopt a relative directory", func(v *v1alpha1.LocalVolume) { adoptDirectory(v); v.Spec.Adopt.Directory = "old/db" }, "spec.adopt.directory"},
		{"adopt everything", func(v *v1alpha1.LocalVolume) { adoptDirectory(v); v.Spec.Adopt.Directory = "/" }, "spec.adopt.directory"},
		{"adopt by a label", func(v *v1alpha1.LocalVolume) { adopt(v); v.Spec.Adopt.FilesystemUUID = "DATA" }, "spec.adopt.filesystemUUID"},
		{"adopt a left-over", adoptLeftOver, ""},
		{"adopt a left-over with its wipe policy", func(v *v1alpha1.LocalVolume) { adoptLeftOver(v); v.Spec.Wipe = v1alpha1.WipeZero }, ""},
		{"adopt a raw left-over", func(v *v1alpha1.LocalVolume) {
			adoptLeftOver(v)
			v.Spec.VolumeMode, v.Spec.FSType = v1alpha1.VolumeBlock, ""
		}, ""},
		{"adopt a left-over directory", func(v *v1alpha1.LocalVolume) {
			adoptLeftOver(v)
			v.Spec.Mode, v.Spec.Pool, v.Spec.FSType = v1alpha1.ModeHostpath, "dirs", ""
		}, ""},
		{"adopt a left-over directory to a path", func(v *v1alpha1.LocalVolume) {
			adoptLeftOver(v)
			v.Spec.Mode, v.Spec.Pool, v.Spec.FSType, v.Spec.Directory = v1alpha1.ModeHostpath, "dirs", "", "shop/db"
		}, "are not allowed beside spec.adopt"},
		{"adopt a left-over disk", func(v *v1alpha1.LocalVolume) { adoptLeftOver(v); v.Spec.Mode, v.Spec.Pool = v1alpha1.ModeDevice, "" }, "a whole disk is adopted by spec.adopt.device"},
		{"adopt a left-over of no filesystem", func(v *v1alpha1.LocalVolume) { adoptLeftOver(v); v.Spec.FSType = "" }, "spec.fsType must be that of its filesystem"},
		{"adopt a left-over and a directory", func(v *v1alpha1.LocalVolume) { adoptLeftOver(v); v.Spec.Adopt.Directory = "/srv/old" }, "or a left-over"},
		{"adopt a left-over that is not named in full", func(v *v1alpha1.LocalVolume) { adoptLeftOver(v); v.Spec.Adopt.LeftOver.Identity = "" }, "spec.adopt.leftOver.identity"},
		{"adopt a left-over of no UID", func(v *v1alpha1.LocalVolume) { adoptLeftOver(v); v.Spec.Adopt.LeftOver.UID = "../x" }, "spec.adopt.leftOver.uid"},
		{"adopt a left-over with options of mkfs", func(v *v1alpha1.LocalVolume) { adoptLeftOver(v); v.Spec.MkfsOptions = []string{"-m", "1"} }, "nothing is formatted"},
		{"adopt a left-over as a copy", func(v *v1alpha1.LocalVolume) { copyOfSnapshot(v); adoptLeftOver(v) }, "is no copy"},
		{"adopt a left-over to be encrypted", func(v *v1alpha1.LocalVolume) { adoptLeftOver(v); v.Spec.Encryption = v1alpha1.EncryptionLUKS2 }, "encryption is not allowed beside it"},
		{"copy of a snapshot", copyOfSnapshot, ""},
		{"copy of a claim", func(v *v1alpha1.LocalVolume) { copyOfSnapshot(v); v.Spec.Source.Kind = "PersistentVolumeClaim" }, "spec.source.kind"},
		{"copy of what has no name", func(v *v1alpha1.LocalVolume) { copyOfSnapshot(v); v.Spec.Source.Name = "" }, "spec.source.name"},
		{"copy in a directory", func(v *v1alpha1.LocalVolume) {
			copyOfSnapshot(v)
			v.Spec.Mode, v.Spec.FSType = v1alpha1.ModeHostpath, ""
		}, ""},
		{"copy on a whole disk", func(v *v1alpha1.LocalVolume) {
			copyOfSnapshot(v)
			v.Spec.Mode, v.Spec.Pool = v1alpha1.ModeDevice, ""
		}, "spec.source is for the modes lvm and hostpath"},
		{"copy with options of mkfs", func(v *v1alpha1.LocalVolume) { copyOfSnapshot(v); v.Spec.MkfsOptions = []string{"-m", "1"} }, "brings its filesystem along"},
		{"limits", limitWith(v1alpha1.VolumeLimits{ReadIOPS: 1, WriteIOPS: v1alpha1.MaxIOPS, ReadBytesPerSecond: 1, WriteBytesPerSecond: math.MaxInt64}), ""},
		{"limits of nothing", limitWith(v1alpha1.VolumeLimits{}), "spec.limits"},
		{"a limit below nothing", limitWith(v1alpha1.VolumeLimits{ReadBytesPerSecond: -1}), "spec.limits.readBytesPerSecond"},
		{"more operations than the kernel counts", limitWith(v1alpha1.VolumeLimits{WriteIOPS: v1alpha1.MaxIOPS + 1}), "spec.limits.writeIOPS"},
		{"limits of a directory", func(v *v1alpha1.LocalVolume) {
			limitWith(v1alpha1.VolumeLimits{ReadIOPS: 1})(v)
			v.Spec.Mode, v.Spec.FSType = v1alpha1.ModeHostpath, ""
		}, "use mode lvm or device"},
		{"encrypted", func(v *v1alpha1.LocalVolume) { v.Spec.Encryption = v1alpha1.EncryptionLUKS2 }, ""},
		{"encrypted otherwise", func(v *v1alpha1.LocalVolume) { v.Spec.Encryption = "luks1" }, "spec.encryption"},
		{"an encrypted directory", func(v *v1alpha1.LocalVolume) {
			v.Spec.Encryption, v.Spec.Mode, v.Spec.FSType = v1alpha1.EncryptionLUKS2, v1alpha1.ModeHostpath, ""
		}, "spec.encryption needs a block device"},
		{"encrypted and adopted", func(v *v1alpha1.LocalVolume) { adopt(v); v.Spec.Encryption = v1alpha1.EncryptionLUKS2 }, "encryption is not allowed beside it"},
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

// adoptDirectory makes a volume one that is a directory that was handed over.
func adoptDirectory(v *v1alpha1.LocalVolume) {
	v.Spec.Mode, v.Spec.Pool, v.Spec.FSType, v.Spec.Wipe = v1alpha1.ModeHostpath, "dirs", "", v1alpha1.WipeNone
	v.Spec.Adopt = &v1alpha1.Adoption{Directory: "/opt/local-path-provisioner/pvc-1_default_data"}
}

// adoptLeftOver makes a volume one that is made of a left-over of its pool.
func adoptLeftOver(v *v1alpha1.LocalVolume) {
	v.Spec.Adopt = &v1alpha1.Adoption{LeftOver: &v1alpha1.AdoptedLeftOver{UID: "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11", Identity: "vg/lv"}}
}

// adopt makes a volume one that is handed over with its disk.
func adopt(v *v1alpha1.LocalVolume) {
	v.Spec.Mode, v.Spec.Pool, v.Spec.Wipe = v1alpha1.ModeDevice, "", v1alpha1.WipeNone
	v.Spec.Adopt = &v1alpha1.Adoption{Device: "bd-0123456789abcdef", FilesystemUUID: "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11"}
}

// limitWith makes a volume one with limits.
func limitWith(limits v1alpha1.VolumeLimits) func(*v1alpha1.LocalVolume) {
	return func(v *v1alpha1.LocalVolume) { v.Spec.Limits = &limits }
}

// copyOfSnapshot makes a volume one that begins as a copy.
func copyOfSnapshot(v *v1alpha1.LocalVolume) {
	v.Spec.Source = &v1alpha1.VolumeSource{Kind: v1alpha1.SourceSnapshot, Name: "snapshot-1", UID: "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11"}
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
		{"a left-over", func(s *v1alpha1.LocalVolumeSpec) {
			s.Adopt = &v1alpha1.Adoption{LeftOver: &v1alpha1.AdoptedLeftOver{UID: "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11", Identity: "vg/lv"}}
		}, "spec.adopt is immutable"},
		{"a source", func(s *v1alpha1.LocalVolumeSpec) {
			s.Source = &v1alpha1.VolumeSource{Kind: v1alpha1.SourceSnapshot, Name: "snapshot-1", UID: "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11"}
		}, "spec.source is immutable"},
		{"limits", func(s *v1alpha1.LocalVolumeSpec) { s.Limits = &v1alpha1.VolumeLimits{ReadIOPS: 1} }, ""},
		{"encryption", func(s *v1alpha1.LocalVolumeSpec) { s.Encryption = v1alpha1.EncryptionLUKS2 }, "spec.encryption is immutable"},
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

// afterPatch calls done when a patch was answered.
type afterPatch struct {
	client.Client
	done func()
}

func (c afterPatch) Patch(ctx context.Context, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
	defer c.done()
	return c.Client.Patch(ctx, obj, patch, opts...)
}

// A change of limits replaces all of them, and asks for nothing else.
func TestLimitsAreReplaced(t *testing.T) {
	t.Parallel()
	made := localVolume("lv-limits", "node1")
	if err := server.admin.Create(t.Context(), made); err != nil {
		t.Fatal(err)
	}
	for _, want := range []*v1alpha1.VolumeLimits{
		{ReadIOPS: 100, WriteBytesPerSecond: 1 << 20}, {WriteBytesPerSecond: 1 << 40, WriteIOPS: 5}, nil, {ReadBytesPerSecond: 1},
	} {
		// No agent answers: the wait ends when the API server has.
		ctx, cancel := context.WithCancel(t.Context())
		volumes := provision.NewVolumes(afterPatch{server.admin, cancel}, server.admin, provision.NewTracker())
		_, err := volumes.Limit(ctx, made.Name, want)
		cancel()
		var pending *provision.Pending
		if want != nil && !errors.As(err, &pending) {
			t.Errorf("%+v without an agent: %v", want, err)
		}
		seen := &v1alpha1.LocalVolume{}
		if err := server.admin.Get(t.Context(), client.ObjectKeyFromObject(made), seen); err != nil {
			t.Fatal(err)
		}
		if !provision.SameLimits(seen.Spec.Limits, want) || seen.Spec.SizeBytes != made.Spec.SizeBytes {
			t.Errorf("became %+v, want %+v", seen.Spec.Limits, want)
		}
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
		{"stripes", "fast", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: v1alpha1.LayoutStriped}, ""},
		{"a layout that nobody knows", "fast", v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: "raid0"}, "spec.layout"},
		{"stripes of directories", "dirs", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/var/lib/x"}, Layout: v1alpha1.LayoutStriped,
		}, "spec.layout is for kind lvm"},
		{"mirrors", "fast", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: v1alpha1.LayoutMirror, RebuildAfter: &metav1.Duration{Duration: time.Minute},
		}, ""},
		{"rebuilt at once", "fast", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: v1alpha1.LayoutRAID6, RebuildAfter: &metav1.Duration{},
		}, ""},
		{"rebuilt before it is lost", "fast", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: v1alpha1.LayoutRAID5, RebuildAfter: &metav1.Duration{Duration: -time.Minute},
		}, "spec.rebuildAfter is a duration from 0s to 720h"},
		{"rebuilt without redundancy", "fast", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: v1alpha1.LayoutStriped, RebuildAfter: &metav1.Duration{Duration: time.Minute},
		}, "spec.rebuildAfter is for the layouts mirror, raid5, raid6 and raid10"},
		{"thin mirrors", "fast", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: v1alpha1.LayoutMirror, Thin: &v1alpha1.ThinPool{},
		}, ""},
		{"thin", "fast", thinPool(nil), ""},
		{"thin with all there is", "fast", thinPool(&v1alpha1.ThinPool{
			OverprovisionRatio: "2.25", InitialPercent: 20, Autoextend: v1alpha1.Autoextend{ThresholdPercent: 50, Percent: 100}, HighWaterPercent: 100, WhenFull: v1alpha1.WhenFullFail,
		}), ""},
		{"thin that promises less than there is", "fast", thinPool(&v1alpha1.ThinPool{OverprovisionRatio: "0.5"}), "spec.thin.overprovisionRatio"},
		{"thin that begins with too much", "fast", thinPool(&v1alpha1.ThinPool{InitialPercent: 101}), "spec.thin.initialPercent"},
		{"thin with a threshold that lvm cannot have", "fast", thinPool(&v1alpha1.ThinPool{Autoextend: v1alpha1.Autoextend{ThresholdPercent: 49}}), "spec.thin.autoextend.thresholdPercent"},
		{"thin that is full at what nobody knows", "fast", thinPool(&v1alpha1.ThinPool{WhenFull: "Panic"}), "spec.thin.whenFull"},
		{"thin in stripes", "fast", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Layout: v1alpha1.LayoutStriped, Thin: &v1alpha1.ThinPool{},
		}, ""},
		{"thin directories", "dirs", v1alpha1.PoolSetSpec{
			Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/var/lib/x"}, Thin: &v1alpha1.ThinPool{},
		}, "spec.thin is for kind lvm"},
		{"adopted", "fast", adopting(nil), ""},
		{"adopted in stripes", "fast", adopting(func(s *v1alpha1.PoolSetSpec) { s.Layout = v1alpha1.LayoutStriped }), ""},
		{"adopted with disks to add", "fast", adopting(func(s *v1alpha1.PoolSetSpec) { s.DeviceSelector = &v1alpha1.DeviceSelector{} }), "spec.deviceSelector is not allowed beside spec.adopt"},
		{"adopted and mirrored", "fast", adopting(func(s *v1alpha1.PoolSetSpec) { s.Layout = v1alpha1.LayoutMirror }), "spec.adopt is for kind lvm and the layouts linear and striped"},
		{"adopted, with a thin pool to make", "fast", adopting(func(s *v1alpha1.PoolSetSpec) { s.Thin = &v1alpha1.ThinPool{} }), "spec.thin and spec.adopt.thinPoolName go together"},
		{"adopted thin pool", "fast", adoptingThinPool(nil), ""},
		{"adopted thin pool with a policy", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) {
			s.Thin = &v1alpha1.ThinPool{OverprovisionRatio: "2.0", HighWaterPercent: 80}
		}), ""},
		{"adopted thin pool without a policy", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Thin = nil }), "spec.thin and spec.adopt.thinPoolName go together"},
		{"adopted thin pool in stripes", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Layout = v1alpha1.LayoutStriped }), "those of a thin pool that was adopted lie where that lies"},
		{"adopted thin pool by its name alone", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Adopt.ThinPoolUUID = "" }), "spec.adopt.thinPoolName and spec.adopt.thinPoolUUID go together"},
		{"adopted thin pool by its UUID alone", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Adopt.ThinPoolName, s.Thin = "", nil }), "spec.adopt.thinPoolName and spec.adopt.thinPoolUUID go together"},
		{"adopted thin pool by an option", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Adopt.ThinPoolName = "--yes" }), "spec.adopt.thinPoolName"},
		{"adopted thin pool by half a UUID", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Adopt.ThinPoolUUID = "AAAAAA" }), "spec.adopt.thinPoolUUID"},
		{"adopted thin pool that shall begin small", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Thin.InitialPercent = 50 }), "a thin pool that was adopted is never extended or changed"},
		{"adopted thin pool that shall grow", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Thin.Autoextend.Percent = 10 }), "a thin pool that was adopted is never extended or changed"},
		{"adopted thin pool that shall grow early", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Thin.Autoextend.ThresholdPercent = 60 }), "a thin pool that was adopted is never extended or changed"},
		{"adopted thin pool that shall fail", "fast", adoptingThinPool(func(s *v1alpha1.PoolSetSpec) { s.Thin.WhenFull = v1alpha1.WhenFullFail }), "a thin pool that was adopted is never extended or changed"},
		{"adopted directory", "fast", adopting(func(s *v1alpha1.PoolSetSpec) {
			s.Kind, s.Hostpath = v1alpha1.PoolHostpath, &v1alpha1.HostpathPool{Path: "/var/lib/x"}
		}), "spec.adopt is for kind lvm"},
		{"adopted by an option", "fast", adopting(func(s *v1alpha1.PoolSetSpec) { s.Adopt.VGName = "--force" }), "spec.adopt.vgName"},
		{"adopted by half a UUID", "fast", adopting(func(s *v1alpha1.PoolSetSpec) { s.Adopt.VGUUID = "AAAAAA" }), "spec.adopt.vgUUID"},
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

func adopting(change func(*v1alpha1.PoolSetSpec)) v1alpha1.PoolSetSpec {
	spec := v1alpha1.PoolSetSpec{
		Kind: v1alpha1.PoolLVM, Adopt: &v1alpha1.AdoptedGroup{VGName: "data", VGUUID: "XZYfXk-xgBA-iMVT-6m8H-2bOs-HxsY-2dYVzB"},
	}
	if change != nil {
		change(&spec)
	}
	return spec
}

func adoptingThinPool(change func(*v1alpha1.PoolSetSpec)) v1alpha1.PoolSetSpec {
	spec := adopting(func(s *v1alpha1.PoolSetSpec) {
		s.Adopt.ThinPoolName, s.Adopt.ThinPoolUUID = "tank", "GgYpIC-Lk79-sc4W-ibsA-FZAx-VqPn-80i1Ee"
		s.Thin = &v1alpha1.ThinPool{}
	})
	if change != nil {
		change(&spec)
	}
	return spec
}

func thinPool(thin *v1alpha1.ThinPool) v1alpha1.PoolSetSpec {
	if thin == nil {
		thin = &v1alpha1.ThinPool{}
	}
	return v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{}, Thin: thin}
}

// thin: {} gets every default, and its presence does not change.
func TestThinPoolSet(t *testing.T) {
	t.Parallel()
	set := &v1alpha1.PoolSet{Spec: thinPool(nil)}
	set.Name = "thin-changes"
	if err := server.admin.Create(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	want := v1alpha1.ThinPool{
		OverprovisionRatio: "1", InitialPercent: 100, Autoextend: v1alpha1.Autoextend{ThresholdPercent: 80, Percent: 20}, HighWaterPercent: 95, WhenFull: v1alpha1.WhenFullWait,
	}
	if set.Spec.Thin == nil || *set.Spec.Thin != want {
		t.Errorf("got %+v, want %+v", set.Spec.Thin, want)
	}
	changed := set.DeepCopy()
	changed.Spec.Thin.OverprovisionRatio = "3"
	if err := server.admin.Update(t.Context(), changed, client.DryRunAll); err != nil {
		t.Errorf("another ratio: %v", err)
	}
	changed = set.DeepCopy()
	changed.Spec.Thin = nil
	wantRefused(t, server.admin.Update(t.Context(), changed, client.DryRunAll), "spec.thin cannot be added or taken away")
}

// What was adopted stays that, and how far it may be used can be changed.
func TestAdoptedThinPoolChanges(t *testing.T) {
	t.Parallel()
	set := &v1alpha1.PoolSet{Spec: adoptingThinPool(nil)}
	set.Name = "adopted-changes"
	set.Spec.NodeSelector = map[string]string{"nowhere": ""}
	if err := server.admin.Create(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.admin.Delete(context.Background(), set) })
	for name, test := range map[string]struct {
		change  func(*v1alpha1.PoolSetSpec)
		refused string
	}{
		"another ratio":      {func(s *v1alpha1.PoolSetSpec) { s.Thin.OverprovisionRatio = "3" }, ""},
		"another thin pool":  {func(s *v1alpha1.PoolSetSpec) { s.Adopt.ThinPoolName = "lake" }, "spec.adopt is immutable"},
		"its group, no pool": {func(s *v1alpha1.PoolSetSpec) { s.Adopt.ThinPoolName, s.Adopt.ThinPoolUUID, s.Thin = "", "", nil }, "spec.adopt is immutable"},
		"growth":             {func(s *v1alpha1.PoolSetSpec) { s.Thin.Autoextend.Percent = 50 }, "never extended or changed"},
	} {
		changed := set.DeepCopy()
		test.change(&changed.Spec)
		err := server.admin.Update(t.Context(), changed, client.DryRunAll)
		if test.refused != "" {
			wantRefused(t, err, test.refused)
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLocalSnapshotChanges(t *testing.T) {
	t.Parallel()
	s := localSnapshot("snapshot-changes", "node1")
	if err := server.admin.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	s.Spec.NodeName = "node2"
	wantRefused(t, server.admin.Update(t.Context(), s, client.DryRunAll), "spec is immutable")
}

// Which disks shall leave a pool may be changed, and what the pool is may not.
func TestPoolChanges(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		kind    v1alpha1.PoolKind
		change  func(*v1alpha1.PoolSpec)
		refused string
	}{
		{"a disk shall leave", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.Evacuate = []string{"bd-0"} }, ""},
		{"twice the same", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.Evacuate = []string{"bd-0", "bd-0"} }, "spec.evacuate[1]"},
		{"of directories", v1alpha1.PoolHostpath, func(s *v1alpha1.PoolSpec) { s.Evacuate = []string{"bd-0"} }, "spec.evacuate is for kind lvm"},
		{"a deleted volume is wanted", v1alpha1.PoolHostpath, func(s *v1alpha1.PoolSpec) { s.TakeBack = []string{"pvc-0"} }, ""},
		{"a deleted volume of no name", v1alpha1.PoolHostpath, func(s *v1alpha1.PoolSpec) { s.TakeBack = []string{""} }, "spec.takeBack[0]"},
		{"a deleted logical volume", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.TakeBack = []string{"pvc-0"} }, "spec.takeBack is for kind hostpath"},
		{"a left-over is asked to be purged", v1alpha1.PoolHostpath, func(s *v1alpha1.PoolSpec) { s.Purge = purgeOf("Volume", leftUID, "x", "y") }, ""},
		{"a snapshot is asked to be purged", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.Purge = purgeOf("Snapshot", leftUID, "x", "") }, "only a Volume or a Record can be purged"},
		{"a purge of no identity", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.Purge = purgeOf("Volume", leftUID, "", "") }, "spec.purge[0].identity"},
		{"a purge of a path", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.Purge = purgeOf("Volume", "../x", "x", "") }, "spec.purge[0].uid"},
		{"two purges of one", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) {
			s.Purge = append(purgeOf("Volume", leftUID, "x", ""), purgeOf("Volume", leftUID, "y", "")...)
		}, "spec.purge[1]"},
		{"moves", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.NodeName = "node2" }, "spec.nodeName is immutable"},
		{"another kind", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.Kind = v1alpha1.PoolHostpath }, "spec.kind is immutable"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pool := &v1alpha1.Pool{
				ObjectMeta: metav1.ObjectMeta{GenerateName: "changes-"},
				Spec:       v1alpha1.PoolSpec{NodeName: "node1", PoolSetName: "changes", Kind: test.kind},
			}
			if err := server.admin.Create(t.Context(), pool); err != nil {
				t.Fatal(err)
			}
			test.change(&pool.Spec)
			err := server.admin.Update(t.Context(), pool, client.DryRunAll)
			if test.refused != "" {
				wantRefused(t, err, test.refused)
			} else if err != nil {
				t.Fatal(err)
			}
		})
	}
}

const leftUID = "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a12"

func purgeOf(kind v1alpha1.LeftOverKind, uid, identity, confirm string) []v1alpha1.PurgeRequest {
	return []v1alpha1.PurgeRequest{{UID: uid, Kind: kind, Identity: identity, Confirm: confirm}}
}

// A request to purge comes to be for nothing else: it is confirmed, or withdrawn.
func TestPurgeRequestChanges(t *testing.T) {
	t.Parallel()
	pool := &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: "purge-changes"},
		Spec:       v1alpha1.PoolSpec{NodeName: "node1", PoolSetName: "purge", Kind: v1alpha1.PoolLVM, Purge: purgeOf("Volume", leftUID, "x", "")},
	}
	if err := server.admin.Create(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	for _, change := range [][]v1alpha1.PurgeRequest{purgeOf("Volume", leftUID, "y", ""), purgeOf("Record", leftUID, "x", "token")} {
		changed := pool.DeepCopy()
		changed.Spec.Purge = change
		wantRefused(t, server.admin.Update(t.Context(), changed, client.DryRunAll), "a request to purge is for one thing")
	}
	for _, change := range [][]v1alpha1.PurgeRequest{purgeOf("Volume", leftUID, "x", "token"), nil, append(purgeOf("Volume", leftUID, "x", ""), purgeOf("Record", "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a13", "z", "")...)} {
		changed := pool.DeepCopy()
		changed.Spec.Purge = change
		if err := server.admin.Update(t.Context(), changed, client.DryRunAll); err != nil {
			t.Errorf("change to %+v: %v", change, err)
		}
	}
	pool.Status.Purges = []v1alpha1.PurgeStatus{{UID: leftUID, State: "Burnt"}}
	wantRefused(t, server.admin.Status().Update(t.Context(), pool), "status.purges[0].state")
}
