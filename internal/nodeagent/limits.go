// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"path/filepath"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berth-dev/berth/internal/agent"
	"github.com/berth-dev/berth/pkg/cgroup"
	"github.com/berth-dev/berth/pkg/mount"
)

// limit makes the part that holds pods to the limits of their volumes. It works in the
// host's cgroup v2, which is seen below the host's root.
func (n *Agent) limit(volumes *agent.VolumeReconciler, known *agent.Volumes, locks *agent.Locks) error {
	root := filepath.Join(n.HostRoot, "sys/fs/cgroup")
	var err error
	if n.podEvents, err = n.openPodEvents(root); err != nil {
		return err
	}
	n.limiter = &agent.Limiter{
		Ledger: n.Ledger, Locate: known.Locate, Devices: mount.NewMounter(n.Host),
		Pods: cgroup.NewPods(cgroup.Mounted{Root: root}), Events: n.podEvents,
		Locks: locks, Failed: volumes.Doubt, Log: n.Log.With("part", "limits"),
	}
	volumes.Limiter = n.limiter
	return nil
}

// openPodEvents listens to the kernel unless somebody else tells.
func (n *Agent) openPodEvents(root string) (PodEvents, error) {
	if n.PodEvents != nil {
		return n.PodEvents, nil
	}
	return cgroup.OpenWatch(root)
}

// followPods tells the limiter of the cgroups of pods until the context ends, also while
// the API server is away.
func (n *Agent) followPods(ctx context.Context) error {
	n.limiter.Resume(ctx, n.Ledger.All())
	return n.podEvents.Run(ctx, func(uid string) { n.limiter.PodChanged(ctx, uid) })
}

// NodePublishVolume implements the CSI Node service. The pod is held to the volume's
// limits before any of its containers starts: kubelet waits for the answer.
func (s *nodeService) NodePublishVolume(ctx context.Context, req *csispec.NodePublishVolumeRequest) (*csispec.NodePublishVolumeResponse, error) {
	resp, err := s.Node.NodePublishVolume(ctx, req)
	if err == nil {
		s.published(ctx, req.GetVolumeId())
	}
	return resp, err
}
