// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi_test

import (
	"context"
	"fmt"
	"maps"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
	"github.com/berth-dev/berth/pkg/volume"
)

// safe opens one volume with one passphrase.
type safe struct {
	volumes *fakeVolumes
	opened  volume.Location
	grown   volume.Location
	held    bool
	did     []string
}

func (s *safe) look(secrets map[string]string) error {
	if !maps.Equal(secrets, map[string]string{"passphrase": "right"}) {
		return fmt.Errorf("no: %w", volume.ErrKey)
	}
	return nil
}

func (s *safe) set(l volume.Location) {
	s.volumes.mu.Lock()
	defer s.volumes.mu.Unlock()
	v := s.volumes.known[name]
	v.Opened = l
	s.volumes.known[name] = v
}

func (s *safe) Open(_ context.Context, _ csi.Volume, secrets map[string]string) (volume.Location, error) {
	s.did = append(s.did, "open")
	if err := s.look(secrets); err != nil {
		return volume.Location{}, err
	}
	s.set(s.opened)
	return s.opened, nil
}

func (s *safe) Grow(_ context.Context, v csi.Volume, secrets map[string]string) (volume.Location, error) {
	s.did = append(s.did, "grow")
	if err := s.look(secrets); err != nil {
		return volume.Location{}, err
	}
	return s.grown, nil
}

func (s *safe) Close(context.Context, string) error {
	s.did = append(s.did, "close")
	if s.held {
		return volume.ErrInUse
	}
	s.set(volume.Location{})
	return nil
}

func (s *safe) CloseGone(context.Context, string) error {
	s.did = append(s.did, "close what is gone")
	if s.held {
		return volume.ErrInUse
	}
	s.set(volume.Location{})
	s.volumes.fail(nil)
	return nil
}

// encrypt puts a volume behind a header: what it is on holds nothing to use.
func encrypt(t *testing.T, v csi.Volume) (*nodeBench, *safe) {
	t.Helper()
	inside := v.Location
	v.Encryption = volume.EncryptionLUKS2
	v.Location = volume.Location{Device: mounttest.LoopDevice(t, inside.SizeBytes+16*mib).Path, SizeBytes: inside.SizeBytes + 16*mib}
	b := newNode(t, v)
	s := &safe{volumes: b.volumes, opened: inside, grown: inside}
	b.Encryption = s
	return b, s
}

func (b *nodeBench) stageWith(c *csispec.VolumeCapability, secrets map[string]string) error {
	_, err := b.NodeStageVolume(context.Background(), &csispec.NodeStageVolumeRequest{
		VolumeId: name, StagingTargetPath: b.staging, VolumeCapability: c, Secrets: secrets,
	})
	return csi.ToStatus(err)
}

var right = map[string]string{"passphrase": "right"}

func TestNodeEncryptedFilesystem(t *testing.T) {
	v, _ := filesystemVolume(t, mount.XFS)
	b, s := encrypt(t, v)
	good := mountCapability(writer)
	for what, secrets := range map[string]map[string]string{"none": nil, "a wrong one": {"passphrase": "wrong"}} {
		if err := b.stageWith(good, secrets); status.Code(err) != codes.Unauthenticated {
			t.Errorf("passphrase: %s: got %v, want Unauthenticated", what, err)
		}
	}
	if mounted, err := b.Mounter.Mounted(t.Context(), b.staging); mounted || err != nil {
		t.Errorf("mounted after a refusal: %v, %v", mounted, err)
	}
	for range 2 {
		if err := b.stageWith(good, right); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.publish(t.Context(), good, b.target, false); err != nil {
		t.Fatal(err)
	}
	mounts, err := b.Mounter.MountsBeside(t.Context(), s.opened.Device)
	if err != nil || len(mounts) != 2 {
		t.Errorf("what is open is mounted at %v, %v", mounts, err)
	}

	expand := &csispec.NodeExpandVolumeRequest{VolumeId: name, VolumePath: b.target, CapacityRange: &csispec.CapacityRange{RequiredBytes: v.Location.SizeBytes}}
	if _, err := b.NodeExpandVolume(t.Context(), expand); status.Code(csi.ToStatus(err)) != codes.Unauthenticated {
		t.Errorf("growth without a passphrase: %v, want Unauthenticated", err)
	}
	expand.Secrets = right
	if resp, err := b.NodeExpandVolume(t.Context(), expand); err != nil || resp.GetCapacityBytes() != v.Location.SizeBytes {
		t.Errorf("growth: %v, %v, want %d bytes: the header is not the user's", resp, err, v.Location.SizeBytes)
	}
	// One byte more than there is behind the header.
	expand.CapacityRange.RequiredBytes++
	if _, err := b.NodeExpandVolume(t.Context(), expand); status.Code(csi.ToStatus(err)) != codes.Aborted {
		t.Errorf("growth into the header: %v, want Aborted", err)
	}

	if err := b.unpublish(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.held = true
	if err := b.unstage(t.Context()); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("unstaged while somebody has it: %v, want FailedPrecondition", err)
	}
	s.held = false
	for range 2 {
		if err := b.unstage(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if b.volumes.known[name].Opened.Device != "" {
		t.Errorf("it is open: %v", s.did)
	}
}

// What could not be staged is not left open, but for a volume that was open before.
func TestNodeEncryptedStageLeavesNothingOpen(t *testing.T) {
	v, _ := filesystemVolume(t, mount.Ext4)
	b, s := encrypt(t, v)
	bad := mountCapability(writer, "no-such-option")
	if err := b.stageWith(bad, right); status.Code(err) != codes.InvalidArgument {
		t.Fatalf("got %v", err)
	}
	if got := fmt.Sprint(s.did); got != "[open close]" {
		t.Errorf("did %s", got)
	}
	s.set(s.opened)
	if err := b.stageWith(bad, right); status.Code(err) != codes.InvalidArgument {
		t.Fatalf("got %v", err)
	}
	if got := fmt.Sprint(s.did); got != "[open close open]" {
		t.Errorf("did %s", got)
	}
}

func TestNodeEncryptedBlock(t *testing.T) {
	b, s := encrypt(t, blockVolume(t))
	if err := b.publish(t.Context(), blockCapability(), b.target, false); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("published before it was staged: %v, want FailedPrecondition", err)
	}
	if err := b.stageWith(blockCapability(), right); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.publish(t.Context(), blockCapability(), b.target, false); err != nil {
			t.Fatal(err)
		}
	}
	mounts, err := b.Mounter.MountsBeside(t.Context(), s.opened.Device)
	if err != nil || len(mounts) != 1 {
		t.Errorf("what is open is published at %v, %v", mounts, err)
	}
	if mounts, err := b.Mounter.MountsBeside(t.Context(), b.volumes.known[name].Location.Device); err != nil || len(mounts) != 0 {
		t.Errorf("its storage is published at %v, %v", mounts, err)
	}
	expand := &csispec.NodeExpandVolumeRequest{VolumeId: name, VolumePath: b.target, Secrets: right}
	if _, err := b.NodeExpandVolume(t.Context(), expand); err != nil {
		t.Error(err)
	}
	if err := b.unpublish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.unstage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.did); got != "[open grow close]" {
		t.Errorf("did %s", got)
	}
}

// The disk was pulled out and put back while the last pod was there: what is open on the one that
// is gone is neither mounted nor published, and closed when nobody has it.
func TestNodeEncryptedDiskIsGone(t *testing.T) {
	v, _ := filesystemVolume(t, mount.Ext4)
	b, s := encrypt(t, v)
	good := mountCapability(writer)
	if err := b.stageWith(good, right); err != nil {
		t.Fatal(err)
	}
	s.did, s.held = nil, true
	b.volumes.fail(fmt.Errorf("volume: %w", volume.ErrGone))
	if err := b.stageWith(good, right); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("staged while a pod has what is gone: %v, want FailedPrecondition", err)
	}
	if mounted, err := b.Mounter.Mounted(t.Context(), b.staging); mounted || err != nil {
		t.Errorf("the filesystem that is gone is mounted: %v, %v", mounted, err)
	}
	if err := b.publish(t.Context(), good, b.target, false); err == nil {
		t.Error("it was published")
	}
	s.held = false
	if err := b.stageWith(good, right); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.did); got != "[close what is gone close what is gone open]" {
		t.Errorf("did %s", got)
	}
	if mounted, err := b.Mounter.Mounted(t.Context(), b.staging); !mounted || err != nil {
		t.Errorf("mounted: %v, %v", mounted, err)
	}
	if err := b.unstage(t.Context()); err != nil {
		t.Fatal(err)
	}
}
