// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi_test

import (
	"os"
	"path/filepath"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
)

func TestNodeSingleWriter(t *testing.T) {
	for _, tt := range []struct {
		name   string
		volume func(*testing.T) csi.Volume
	}{
		{"filesystem", func(t *testing.T) csi.Volume { v, _ := filesystemVolume(t, mount.Ext4); return v }},
		{"hostpath", directoryVolume},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newNode(t, tt.volume(t))
			sole := mountCapability(csispec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER)
			if err := b.stage(t.Context(), sole); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := b.publish(t.Context(), sole, b.target, false); err != nil {
					t.Fatal(err)
				}
			}
			if err := b.publish(t.Context(), sole, b.target+"-2", false); status.Code(err) != codes.FailedPrecondition {
				t.Errorf("a second publication: got %v", err)
			}
			if err := b.publish(t.Context(), mountCapability(writer), b.target+"-2", false); err != nil {
				t.Errorf("a second publication on one node: %v", err)
			}
		})
	}
}

// kubelet binds a block device that was published once more for itself, and asks for the
// publication again when it was restarted.
func TestNodeSingleWriterBlock(t *testing.T) {
	b := newNode(t, blockVolume(t))
	sole := blockCapability()
	sole.AccessMode.Mode = csispec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	if err := b.publish(t.Context(), sole, b.target, false); err != nil {
		t.Fatal(err)
	}
	kubelets := filepath.Join(filepath.Dir(b.target), "kubelets")
	mounttest.Unmount(t, kubelets)
	if err := b.Mounter.BindDevice(t.Context(), mount.Bind{Source: b.target, Target: kubelets}); err != nil {
		t.Fatal(err)
	}
	if err := b.publish(t.Context(), sole, b.target, false); err != nil {
		t.Errorf("the same publication again: %v", err)
	}
	if err := b.publish(t.Context(), sole, b.target+"-2", false); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a second publication: got %v", err)
	}
}

// kubelet's directory may be reached by a symbolic link, and the mount table has no links.
func TestNodeSingleWriterBelowALink(t *testing.T) {
	v, _ := filesystemVolume(t, mount.Ext4)
	b := newNode(t, v)
	link := filepath.Join(t.TempDir(), "kubelet")
	if err := os.Symlink(filepath.Dir(b.target), link); err != nil {
		t.Fatal(err)
	}
	b.staging, b.target = filepath.Join(link, "globalmount"), filepath.Join(link, "target")
	sole := mountCapability(csispec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER)
	if err := b.stage(t.Context(), sole); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.publish(t.Context(), sole, b.target, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.publish(t.Context(), sole, b.target+"-2", false); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a second publication: got %v", err)
	}
}
