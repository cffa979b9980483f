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
		{"adopt a left-over disk", func(v *v1alpha1.LocalVolume) { adoptLeftOver(v); v.Spec.Mode, v.Spec.Pool = v1alpha1.ModeDevice, "" }, ""},
		{"adopt a left-over disk of no filesystem", func(v *v1alpha1.LocalVolume) {
			adoptLeftOver(v)
			v.Spec.Mode, v.Spec.Pool, v.Spec.FSType = v1alpha1.ModeDevice, "", ""
		}, "spec.fsType must be that of its filesystem"},
		{"adopt a left-over disk, and a disk", func(v *v1alpha1.LocalVolume) {
			adoptLeftOver(v)
			v.Spec.Mode, v.Spec.Pool, v.Spec.Adopt.Device = v1alpha1.ModeDevice, "", "bd-1"
		}, "or a left-over"},
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

// A growth that was not made is taken back, and the volume stays as large as it is.
func TestLocalVolumeGrowthIsTakenBack(t *testing.T) {
	t.Parallel()
	made := localVolume("lv-taken-back", "node1")
	made.Spec.SizeBytes = 3 << 30
	if err := server.admin.Create(t.Context(), made); err != nil {
		t.Fatal(err)
	}
	made.Status.Capacity = resource.NewQuantity(1<<30+4<<20, resource.BinarySI)
	if err := server.admin.Status().Update(t.Context(), made); err != nil {
		t.Fatal(err)
	}
	for sizeBytes, refused := range map[int64]string{
		2 << 30: "", 1<<30 + 4<<20: "", 1<<30 + 4<<20 - 1: "spec.sizeBytes only grows", 1 << 20: "spec.sizeBytes only grows",
	} {
		changed := made.DeepCopy()
		changed.Spec.SizeBytes = sizeBytes
		err := server.admin.Update(t.Context(), changed, client.DryRunAll)
		if refused != "" {
			wantRefused(t, err, refused)
		} else if err != nil {
			t.Errorf("%d bytes: %v", sizeBytes, err)
		}
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

func TestLocalSnapshotChanges(t *testing.T) {
	t.Parallel()
	s := localSnapshot("snapshot-changes", "node1")
	if err := server.admin.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	s.Spec.NodeName = "node2"
	wantRefused(t, server.admin.Update(t.Context(), s, client.DryRunAll), "spec is immutable")
}
