// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	fsUUID = "0b6a1c1e-3f57-4f0e-9d3c-5a1f7f2f9a01"
	mib    = int64(1) << 20
	name   = "pvc-1"
)

// fakeVolumes knows the volumes that a test gives it.
type fakeVolumes struct {
	mu     sync.Mutex
	known  map[string]csi.Volume
	err    error
	asked  int
	inside func()
}

func (f *fakeVolumes) Locate(_ context.Context, name string) (csi.Volume, error) {
	f.mu.Lock()
	inside := f.inside
	f.asked++
	v, ok := f.known[name]
	err := f.err
	f.mu.Unlock()
	if inside != nil {
		inside()
	}
	if err != nil {
		return csi.Volume{}, err
	}
	if !ok {
		return csi.Volume{}, volume.ErrNotFound
	}
	return v, nil
}

// fail has all that is asked for fail; nil ends it.
func (f *fakeVolumes) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

type runCounter struct {
	mount.Host
	mu  sync.Mutex
	ran []string
	// fails is what every program comes to, if it is set.
	fails error
}

func (r *runCounter) Run(ctx context.Context, c hostexec.Command) (hostexec.Result, error) {
	r.mu.Lock()
	r.ran = append(r.ran, c.Name)
	fails := r.fails
	r.mu.Unlock()
	if fails != nil {
		return hostexec.Result{}, fails
	}
	return r.Host.Run(ctx, c)
}

// nodeBench is a node service over real devices and mounts.
type nodeBench struct {
	*csi.Node
	volumes         *fakeVolumes
	host            *runCounter
	staging, target string
}

func newNode(t *testing.T, v csi.Volume) *nodeBench {
	t.Helper()
	mounttest.RequireRoot(t)
	dir := t.TempDir()
	b := &nodeBench{
		volumes: &fakeVolumes{known: map[string]csi.Volume{v.Name: v}},
		host:    &runCounter{Host: mounttest.Here(t)},
		staging: filepath.Join(dir, "globalmount"), target: filepath.Join(dir, "target"),
	}
	if err := os.Mkdir(b.staging, 0o750); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{b.staging, b.target, b.target + "-2"} {
		mounttest.Unmount(t, path)
	}
	b.Node = &csi.Node{
		NodeName: "node1", TopologyKey: "topology.berth.dev/node", MaxVolumes: 100,
		Volumes: b.volumes, Mounter: mount.NewMounter(b.host), Locks: &keyedLocks{},
	}
	return b
}

func filesystemVolume(t *testing.T, fsType string) (csi.Volume, *mounttest.Loop) {
	t.Helper()
	size := map[string]int64{mount.Ext4: 64 * mib, mount.XFS: 320 * mib, mount.Btrfs: 128 * mib}[fsType]
	loop := mounttest.LoopDevice(t, size)
	err := mount.NewFormatter(mounttest.Here(t)).Format(t.Context(), mount.FormatRequest{
		Device: loop.Path, FSType: fsType, UUID: fsUUID, NeverFormatted: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return csi.Volume{
		Name: name, UID: fsUUID, Mode: volume.ModeLVM, Access: volume.AccessFilesystem, FSType: fsType, FSUUID: fsUUID,
		Location: volume.Location{Device: loop.Path, SizeBytes: size},
	}, loop
}

func blockVolume(t *testing.T) csi.Volume {
	t.Helper()
	loop := mounttest.LoopDevice(t, 16*mib)
	return csi.Volume{Name: name, Mode: volume.ModeDevice, Access: volume.AccessBlock, Location: volume.Location{Device: loop.Path, SizeBytes: 16 * mib}}
}

func directoryVolume(t *testing.T) csi.Volume {
	t.Helper()
	return csi.Volume{Name: name, Mode: volume.ModeHostpath, Access: volume.AccessFilesystem, Location: volume.Location{Directory: t.TempDir(), SizeBytes: mib}}
}

func mountCapability(mode csispec.VolumeCapability_AccessMode_Mode, flags ...string) *csispec.VolumeCapability {
	return &csispec.VolumeCapability{
		AccessMode: &csispec.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csispec.VolumeCapability_Mount{Mount: &csispec.VolumeCapability_MountVolume{MountFlags: flags}},
	}
}

func blockCapability() *csispec.VolumeCapability {
	return &csispec.VolumeCapability{
		AccessMode: &csispec.VolumeCapability_AccessMode{Mode: csispec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csispec.VolumeCapability_Block{Block: &csispec.VolumeCapability_BlockVolume{}},
	}
}

const writer = csispec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER

func (b *nodeBench) stage(ctx context.Context, c *csispec.VolumeCapability) error {
	_, err := b.NodeStageVolume(ctx, &csispec.NodeStageVolumeRequest{VolumeId: name, StagingTargetPath: b.staging, VolumeCapability: c})
	return csi.ToStatus(err)
}

func (b *nodeBench) publish(ctx context.Context, c *csispec.VolumeCapability, target string, readOnly bool) error {
	_, err := b.NodePublishVolume(ctx, &csispec.NodePublishVolumeRequest{
		VolumeId: name, StagingTargetPath: b.staging, TargetPath: target, VolumeCapability: c, Readonly: readOnly,
	})
	return csi.ToStatus(err)
}

func (b *nodeBench) unpublish(ctx context.Context) error {
	_, err := b.NodeUnpublishVolume(ctx, &csispec.NodeUnpublishVolumeRequest{VolumeId: name, TargetPath: b.target})
	return csi.ToStatus(err)
}

func (b *nodeBench) unstage(ctx context.Context) error {
	_, err := b.NodeUnstageVolume(ctx, &csispec.NodeUnstageVolumeRequest{VolumeId: name, StagingTargetPath: b.staging})
	return csi.ToStatus(err)
}

func TestNodeLifeOfAVolume(t *testing.T) {
	tests := []struct {
		name       string
		volume     func(*testing.T) csi.Volume
		capability *csispec.VolumeCapability
	}{
		{"ext4", func(t *testing.T) csi.Volume { v, _ := filesystemVolume(t, mount.Ext4); return v }, mountCapability(writer, "noatime", "discard")},
		{"xfs", func(t *testing.T) csi.Volume { v, _ := filesystemVolume(t, mount.XFS); return v }, mountCapability(writer, "noatime")},
		{"btrfs", func(t *testing.T) csi.Volume { v, _ := filesystemVolume(t, mount.Btrfs); return v }, mountCapability(writer, "noatime", "compress=zstd")},
		{"hostpath", directoryVolume, mountCapability(writer, "noatime")},
		{"block", blockVolume, blockCapability()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := tt.volume(t)
			b := newNode(t, v)
			ctx := t.Context()
			for range 3 {
				if err := b.stage(ctx, tt.capability); err != nil {
					t.Fatalf("stage: %v", err)
				}
			}
			for range 3 {
				if err := b.publish(ctx, tt.capability, b.target, false); err != nil {
					t.Fatalf("publish: %v", err)
				}
			}
			file := filepath.Join(b.target, "file")
			if v.Access == volume.AccessBlock {
				file = b.target
			}
			if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
				t.Fatal(err)
			}
			stats, err := b.NodeGetVolumeStats(ctx, &csispec.NodeGetVolumeStatsRequest{VolumeId: name, VolumePath: b.target})
			usages := 2 // bytes and inodes
			if v.Access == volume.AccessBlock || v.FSType == mount.Btrfs {
				usages = 1
			}
			if err != nil || stats.GetUsage()[0].GetTotal() <= 0 || len(stats.GetUsage()) != usages {
				t.Errorf("stats %v, %v", stats, err)
			}
			grown, err := b.NodeExpandVolume(ctx, &csispec.NodeExpandVolumeRequest{VolumeId: name, VolumePath: b.target})
			if err != nil || grown.GetCapacityBytes() != v.Location.SizeBytes {
				t.Errorf("expand %v, %v", grown, err)
			}
			// From here on nobody knows the volume: the API server is away, or it is gone.
			b.volumes.err = errors.New("the API server is away")
			for range 3 {
				if err := b.unpublish(ctx); err != nil {
					t.Fatalf("unpublish: %v", err)
				}
			}
			if _, err := os.Lstat(b.target); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the target is still there: %v", err)
			}
			for range 3 {
				if err := b.unstage(ctx); err != nil {
					t.Fatalf("unstage: %v", err)
				}
			}
			b.volumes.err = nil
			if err := b.stage(ctx, tt.capability); err != nil {
				t.Fatalf("stage again: %v", err)
			}
			if err := b.publish(ctx, tt.capability, b.target, true); err != nil {
				t.Fatalf("publish read-only: %v", err)
			}
			got := make([]byte, 4)
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Read(got); err != nil || string(got) != "data" {
				t.Errorf("read %q, %v", got, err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if v.Access == volume.AccessFilesystem {
				if err := os.WriteFile(file, nil, 0o600); !errors.Is(err, unix.EROFS) {
					t.Errorf("write to a read-only publication: %v", err)
				}
				var st unix.Statfs_t
				if err := unix.Statfs(b.target, &st); err != nil || st.Flags&unix.ST_NOATIME == 0 {
					t.Errorf("the class's mount options are missing: %#x, %v", st.Flags, err)
				}
			}
			if len(b.host.ran) != 0 {
				t.Errorf("programs were run: %v", b.host.ran)
			}
		})
	}
}

func TestNodeStageVerifies(t *testing.T) {
	v, loop := filesystemVolume(t, mount.Ext4)
	tests := []struct {
		name   string
		change func(*csi.Volume, *fakeVolumes)
		want   codes.Code
	}{
		{"another UUID", func(v *csi.Volume, _ *fakeVolumes) { v.FSUUID = "0b6a1c1e-3f57-4f0e-9d3c-5a1f7f2f9a02" }, codes.FailedPrecondition},
		{"another type", func(v *csi.Volume, _ *fakeVolumes) { v.FSType = mount.XFS }, codes.FailedPrecondition},
		{"an empty device", func(v *csi.Volume, _ *fakeVolumes) { v.Location.Device = mounttest.LoopDevice(t, 64*mib).Path }, codes.FailedPrecondition},
		{"no device", func(v *csi.Volume, _ *fakeVolumes) { v.Location.Device = "/dev/berth-nothing" }, codes.NotFound},
		{"unknown", func(v *csi.Volume, _ *fakeVolumes) { v.Name = "pvc-other" }, codes.NotFound},
		{"not the recorded storage", func(_ *csi.Volume, f *fakeVolumes) { f.err = volume.ErrIdentity }, codes.FailedPrecondition},
		{"pool away", func(_ *csi.Volume, f *fakeVolumes) { f.err = volume.ErrPoolUnavailable }, codes.Unavailable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			changed := v
			b := newNode(t, changed)
			tt.change(&changed, b.volumes)
			b.volumes.known = map[string]csi.Volume{changed.Name: changed}
			if err := b.stage(t.Context(), mountCapability(writer)); status.Code(err) != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if mounted, err := b.Mounter.Mounted(t.Context(), b.staging); mounted || err != nil {
				t.Errorf("mounted: %v, %v", mounted, err)
			}
			if len(b.host.ran) != 0 {
				t.Errorf("programs were run: %v", b.host.ran)
			}
		})
	}
	if s, err := mount.NewMounter(mounttest.Here(t)).Inspect(t.Context(), loop.Path); err != nil || s.UUID != fsUUID {
		t.Errorf("the filesystem was changed: %+v, %v", s, err)
	}
}

// kubelet does not unstage what it was told could not be staged: nothing may be left of it. What
// stood before stays.
func TestNodeStageLeavesNothingBehind(t *testing.T) {
	v, loop := filesystemVolume(t, mount.Ext4)
	b := newNode(t, v)
	mounted := func() bool {
		mounted, err := b.Mounter.Mounted(t.Context(), b.staging)
		if err != nil {
			t.Fatal(err)
		}
		return mounted
	}
	if err := b.stage(t.Context(), mountCapability(writer)); err != nil || !mounted() {
		t.Fatalf("%v, mounted %t", err, mounted())
	}
	loop.Resize(t, 512*mib)
	b.host.fails = &hostexec.ExitError{Command: "resize2fs", ExitCode: 1}
	if err := b.stage(t.Context(), mountCapability(writer)); err == nil || !mounted() {
		t.Errorf("staged a second time: %v, mounted %t", err, mounted())
	}
	if err := b.unstage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.stage(t.Context(), mountCapability(writer)); err == nil || mounted() {
		t.Errorf("staged without its growth: %v, mounted %t", err, mounted())
	}
}

func TestNodeRequests(t *testing.T) {
	v, _ := filesystemVolume(t, mount.Ext4)
	b := newNode(t, v)
	good := mountCapability(writer)
	xfs := mountCapability(writer)
	xfs.GetMount().FsType = mount.XFS
	tests := []struct {
		name       string
		capability *csispec.VolumeCapability
		want       codes.Code
	}{
		{"no capability", nil, codes.InvalidArgument},
		{"no access type", &csispec.VolumeCapability{AccessMode: good.GetAccessMode()}, codes.InvalidArgument},
		{"many nodes", mountCapability(csispec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER), codes.InvalidArgument},
		{"no access mode", mountCapability(csispec.VolumeCapability_AccessMode_UNKNOWN), codes.InvalidArgument},
		{"block on a filesystem", blockCapability(), codes.InvalidArgument},
		{"another filesystem", xfs, codes.InvalidArgument},
		{"an option that moves the mount", mountCapability(writer, "bind"), codes.InvalidArgument},
		{"an option that ext4 does not know", mountCapability(writer, "nonsense"), codes.InvalidArgument},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := b.stage(t.Context(), tt.capability); status.Code(err) != tt.want {
				t.Errorf("stage: got %v, want %v", err, tt.want)
			}
		})
	}
	if err := b.publish(t.Context(), good, b.target, false); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("publish what is not staged: got %v", err)
	}
	if _, err := os.Lstat(b.target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused publication left a target: %v", err)
	}
	if _, err := b.NodeGetVolumeStats(t.Context(), &csispec.NodeGetVolumeStatsRequest{VolumeId: name, VolumePath: b.staging}); status.Code(csi.ToStatus(err)) != codes.NotFound {
		t.Errorf("stats of what is not mounted: got %v", err)
	}
	info, err := b.NodeGetInfo(t.Context(), nil)
	if err != nil || info.GetNodeId() != "node1" || info.GetMaxVolumesPerNode() != 100 || info.GetAccessibleTopology().GetSegments()["topology.berth.dev/node"] != "node1" {
		t.Errorf("info %v, %v", info, err)
	}
}

func TestNodeBusyVolumeIsAborted(t *testing.T) {
	v := directoryVolume(t)
	b := newNode(t, v)
	unlock, err := b.Locks.Lock(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	for what, call := range map[string]func() error{
		"stage":     func() error { return b.stage(t.Context(), mountCapability(writer)) },
		"unpublish": func() error { return b.unpublish(t.Context()) },
	} {
		if err := call(); status.Code(err) != codes.Aborted {
			t.Errorf("%s: got %v", what, err)
		}
	}
	unlock()
	if err := b.stage(t.Context(), mountCapability(writer)); err != nil {
		t.Error(err)
	}
	if b.volumes.asked != 1 {
		t.Errorf("the volume was touched %d times, want once", b.volumes.asked)
	}
}

// The disk was pulled out and put back while the last pod was there: its filesystem is not mounted at
// the staging path any more, and the next pod waits until nobody has it.
func TestNodeDiskIsGone(t *testing.T) {
	v, _ := filesystemVolume(t, mount.Ext4)
	b := newNode(t, v)
	good := mountCapability(writer)
	if err := b.stage(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	b.volumes.fail(fmt.Errorf("volume: %w: %w", volume.ErrGone, volume.ErrInUse))
	err := b.stage(t.Context(), good)
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("staged while a pod has what is gone: %v, want FailedPrecondition", err)
	}
	if mounted, err := b.Mounter.Mounted(t.Context(), b.staging); mounted || err != nil {
		t.Errorf("the filesystem that is gone is mounted: %v, %v", mounted, err)
	}
	b.volumes.fail(nil)
	if err := b.stage(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	if err := b.unstage(t.Context()); err != nil {
		t.Fatal(err)
	}
}
