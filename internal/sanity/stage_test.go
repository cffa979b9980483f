// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sanity_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// costsEnv lets TestKernelCostsOfStaging measure.
const costsEnv = "BERTH_TEST_COSTS"

// TestKernelCostsOfStaging prints what a pod's start costs on the node where its volume is
// formatted already: NodeStageVolume and NodePublishVolume through the agent's socket, and
// their undoing, in turn with mount(8) and umount(8) of the same device. With BERTH_TEST_COSTS
// and a disk to destroy only.
func TestKernelCostsOfStaging(t *testing.T) {
	if os.Getenv(costsEnv) == "" {
		t.Skipf("measures only with %s", costsEnv)
	}
	const rounds = 15
	fmt.Fprintf(os.Stdout, "\n| an ext4 that was made before | stage, ms | publish, ms | together | mount, ms | less | unpublish and unstage, ms | umount, ms |\n|---|---|---|---|---|---|---|---|\n")
	for _, m := range realModes() {
		if m.accessType != "mount" {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			n := newNode(t, m.place(t))
			connection, err := grpc.NewClient("unix:"+n.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer connection.Close()
			controller, service := csispec.NewControllerClient(connection), csispec.NewNodeClient(connection)
			capability := &csispec.VolumeCapability{
				AccessType: &csispec.VolumeCapability_Mount{Mount: &csispec.VolumeCapability_MountVolume{FsType: "ext4"}},
				AccessMode: &csispec.VolumeCapability_AccessMode{Mode: csispec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
			}
			made, err := controller.CreateVolume(t.Context(), &csispec.CreateVolumeRequest{
				Name: "costs", Parameters: m.parameters, VolumeCapabilities: []*csispec.VolumeCapability{capability},
				CapacityRange: &csispec.CapacityRange{RequiredBytes: m.sizeBytes},
				AccessibilityRequirements: &csispec.TopologyRequirement{
					Requisite: []*csispec.Topology{{Segments: map[string]string{berth.TopologyKeyNode: nodeName}}},
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			volume := made.GetVolume()
			defer func() {
				if _, err := controller.DeleteVolume(t.Context(), &csispec.DeleteVolumeRequest{VolumeId: volume.GetVolumeId()}); err != nil {
					t.Error(err)
				}
				n.requireClean(t)
			}()
			staging, target := filepath.Join(n.directory, "staging"), filepath.Join(n.directory, "target")
			if err := os.Mkdir(staging, 0o750); err != nil {
				t.Fatal(err)
			}
			times := map[string][]float64{}
			measure := func(what string, f func() error) {
				t.Helper()
				began := time.Now()
				if err := f(); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				times[what] = append(times[what], float64(time.Since(began).Microseconds())/1000)
			}
			for range rounds {
				measure("stage", func() error {
					_, err := service.NodeStageVolume(t.Context(), &csispec.NodeStageVolumeRequest{
						VolumeId: volume.GetVolumeId(), VolumeContext: volume.GetVolumeContext(), StagingTargetPath: staging, VolumeCapability: capability,
					})
					return err
				})
				measure("publish", func() error {
					_, err := service.NodePublishVolume(t.Context(), &csispec.NodePublishVolumeRequest{
						VolumeId: volume.GetVolumeId(), VolumeContext: volume.GetVolumeContext(), StagingTargetPath: staging, TargetPath: target, VolumeCapability: capability,
					})
					return err
				})
				device := mountedFrom(t, staging)
				measure("undo", func() error {
					if _, err := service.NodeUnpublishVolume(t.Context(), &csispec.NodeUnpublishVolumeRequest{VolumeId: volume.GetVolumeId(), TargetPath: target}); err != nil {
						return err
					}
					_, err := service.NodeUnstageVolume(t.Context(), &csispec.NodeUnstageVolumeRequest{VolumeId: volume.GetVolumeId(), StagingTargetPath: staging})
					return err
				})
				measure("mount", func() error { return exec.CommandContext(t.Context(), "mount", "-t", "ext4", device, staging).Run() })
				measure("umount", func() error { return exec.CommandContext(t.Context(), "umount", staging).Run() })
			}
			median := func(what string) float64 { slices.Sort(times[what]); return times[what][rounds/2] }
			fmt.Fprintf(os.Stdout, "| %s | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f |\n", strings.TrimSuffix(m.name, " on a disk"), median("stage"), median("publish"),
				median("stage")+median("publish"), median("mount"), median("stage")+median("publish")-median("mount"), median("undo"), median("umount"))
		})
	}
}

// mountedFrom is the device that is mounted at a path.
func mountedFrom(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", path).Output()
	if err != nil {
		t.Fatalf("what is mounted at %s: %v", path, err)
	}
	return strings.TrimSpace(string(out))
}
