// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

// fakeHealth says what a test wants.
type fakeHealth struct {
	problems []csi.Problem
	err      error
}

func (f fakeHealth) VolumeProblems(_ context.Context, volumeName string) ([]csi.Problem, error) {
	if volumeName != name {
		return nil, volume.ErrNotFound
	}
	return f.problems, f.err
}

func (f fakeHealth) StorageProblems(context.Context) ([]csi.Problem, error) { return f.problems, f.err }

func TestVolumeHealth(t *testing.T) {
	v, loop := filesystemVolume(t, mount.Ext4)
	b := newNode(t, v)
	b.Health = fakeHealth{}
	ctx := t.Context()
	if err := b.stage(ctx, mountCapability(writer, "errors=remount-ro")); err != nil {
		t.Fatal(err)
	}
	ask := func() []*csispec.VolumeHealth_VolumeHealthEntry {
		t.Helper()
		resp, err := b.NodeGetVolumeHealth(ctx, &csispec.NodeGetVolumeHealthRequest{VolumeId: name, StagingTargetPath: b.staging})
		if err != nil || resp.GetVolumeHealth().GetVolumeId() != name {
			t.Fatalf("%+v, %v", resp, err)
		}
		return resp.GetVolumeHealth().GetHealthStatuses()
	}
	if entries := ask(); len(entries) != 0 {
		t.Errorf("a whole volume: %+v", entries)
	}
	if err := os.WriteFile(filepath.Join("/sys/fs/ext4", filepath.Base(loop.Path), "trigger_fs_error"), []byte("a test"), 0); err != nil {
		t.Fatal(err)
	}
	b.Health = fakeHealth{problems: []csi.Problem{
		{Severity: csi.Degraded, Reason: "DiskFailing", Message: "one"},
		{Severity: csi.Degraded, Reason: "DiskFailing", Message: "two"},
		{Severity: csi.Inaccessible, Reason: "Missing", Message: "it is gone"},
	}}
	want := map[string]csispec.VolumeHealthErrorType{
		"DiskFailing": csispec.VolumeHealthErrorType_DEGRADED, "Missing": csispec.VolumeHealthErrorType_INACCESSIBLE,
		"FilesystemReadOnly": csispec.VolumeHealthErrorType_DEGRADED, "FilesystemErrors": csispec.VolumeHealthErrorType_DEGRADED,
	}
	entries := ask()
	if len(entries) != len(want) {
		t.Errorf("%d entries, want %d: one for each status and reason", len(entries), len(want))
	}
	for _, entry := range entries {
		if want[entry.GetReason()] != entry.GetStatus() || entry.GetMessage() == "" {
			t.Errorf("%+v", entry)
		}
		if entry.GetReason() == "DiskFailing" && entry.GetMessage() != "one; two" {
			t.Errorf("message %q, want both", entry.GetMessage())
		}
	}
}

func TestVolumeHealthRefuses(t *testing.T) {
	t.Parallel()
	n := &csi.Node{Health: fakeHealth{}}
	for want, req := range map[codes.Code]*csispec.NodeGetVolumeHealthRequest{
		codes.InvalidArgument: {},
		codes.NotFound:        {VolumeId: "pvc-other"},
	} {
		if _, err := n.NodeGetVolumeHealth(t.Context(), req); status.Code(csi.ToStatus(err)) != want {
			t.Errorf("%+v: %v, want %s", req, err, want)
		}
	}
	relative := &csispec.NodeGetVolumeHealthRequest{VolumeId: name, VolumePublishPath: "pods/x"}
	if _, err := n.NodeGetVolumeHealth(t.Context(), relative); status.Code(csi.ToStatus(err)) != codes.InvalidArgument {
		t.Errorf("a relative path: %v, want InvalidArgument", err)
	}
}

func TestStorageHealth(t *testing.T) {
	t.Parallel()
	n := &csi.Node{Health: fakeHealth{problems: []csi.Problem{
		{Severity: csi.Degraded, Reason: "PoolDegraded", Message: "misses a disk"},
		{Severity: csi.Inaccessible, Reason: "PoolFailed", Message: "cannot be used"},
	}}}
	resp, err := n.NodeGetStorageHealth(t.Context(), &csispec.NodeGetStorageHealthRequest{})
	if err != nil || len(resp.GetBackendHealth()) != 2 {
		t.Fatalf("%+v, %v", resp, err)
	}
	if one, two := resp.GetBackendHealth()[0], resp.GetBackendHealth()[1]; one.GetStatus() != csispec.StorageHealthErrorType_STORAGE_DEGRADED ||
		two.GetStatus() != csispec.StorageHealthErrorType_STORAGE_UNREACHABLE || two.GetReason() != "PoolFailed" || two.GetMessage() != "cannot be used" {
		t.Errorf("%+v", resp)
	}
}
