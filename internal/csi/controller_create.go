// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/pkg/volume"
)

// defaultSizeBytes is made when a CO names no size.
const defaultSizeBytes = 1 << 30

// annotationCSIName keeps the CSI name of a volume whose LocalVolume could not be
// called so.
const annotationCSIName = "berth.dev/csi-name"

// metadataParameters are what external-provisioner adds to a class's parameters
// with --extra-create-metadata; they ask for nothing.
var metadataParameters = []string{"csi.storage.k8s.io/pv/name", "csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pvc/namespace"}

func withoutMetadata(params map[string]string) map[string]string {
	params = maps.Clone(params)
	for _, key := range metadataParameters {
		delete(params, key)
	}
	return params
}

// creation is a CreateVolumeRequest, checked.
type creation struct {
	name       string
	params     provision.Parameters
	limits     *berth.VolumeLimits
	access     berth.VolumeMode
	leastBytes int64
	limitBytes int64 // 0 is no limit
	nodes      []string
	// copyOf is nil for an empty volume.
	copyOf *csi.VolumeContentSource
}

// CreateVolume makes a volume on the first of the preferred or requisite nodes
// that can make it, or on any where the CO names none. A repeated call returns the
// volume of the first; one of the same name that does not fit is ALREADY_EXISTS.
func (c *Controller) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	want, err := parseCreation(req)
	if err != nil {
		return nil, err
	}
	release, err := c.busy.take(want.name)
	if err != nil {
		return nil, err
	}
	defer release()

	existing, err := c.volumes.Find(ctx, want.name)
	switch {
	case err == nil && existing.DeletionTimestamp == nil:
		return c.same(ctx, existing, want)
	case err != nil && !errors.Is(err, volume.ErrNotFound):
		return nil, err
	}
	if want.copyOf != nil {
		return c.createCopy(ctx, want, req.GetName())
	}
	nodes, err := c.candidates(ctx, want)
	if err != nil {
		return nil, err
	}
	for i, node := range nodes {
		lv, err := c.volumes.Ensure(ctx, want.request(node, req.GetName()))
		var failure *provision.Failure
		switch {
		case err == nil:
			return c.within(ctx, lv, want.limitBytes)
		case errors.As(err, &failure) && failure.Reason != berth.ReasonInvalid && i < len(nodes)-1:
			c.log.Info("trying the next node", "volume", want.name, "node", node, "reason", failure.Reason)
		default:
			return nil, err
		}
	}
	return nil, fmt.Errorf("no node can make volume %s: %w", want.name, volume.ErrNoSpace)
}

// parseCreation checks everything that can be checked without looking.
func parseCreation(req *csi.CreateVolumeRequest) (creation, error) {
	var want creation
	if err := required("name", req.GetName()); err != nil {
		return want, err
	}
	want.name = objectName(req.GetName())
	if len(req.GetVolumeCapabilities()) == 0 {
		return want, fmt.Errorf("%w: volume_capabilities is missing", volume.ErrInvalid)
	}
	if want.copyOf = req.GetVolumeContentSource(); want.copyOf != nil && want.copyOf.GetSnapshot() == nil && want.copyOf.GetVolume() == nil {
		return want, fmt.Errorf("%w: volume_content_source names neither a snapshot nor a volume", volume.ErrInvalid)
	}
	params, err := provision.ParseParameters(withoutMetadata(req.GetParameters()))
	if err != nil {
		return want, err
	}
	want.params = params
	if params.PathTemplate != nil {
		return want, fmt.Errorf("%w: parameter %s is filled in by Berth's own provisioner, from a claim, which CreateVolume does not know; remove it", volume.ErrInvalid, provision.ParameterPathTemplate)
	}
	if want.limits, err = provision.ParseLimits(withoutMetadata(req.GetMutableParameters())); err != nil {
		return want, err
	}
	if err := provision.CheckLimits(params.Mode, want.limits); err != nil {
		return want, err
	}
	if err := want.setUse(req.GetVolumeCapabilities()); err != nil {
		return want, err
	}
	if err := want.setSize(req.GetCapacityRange()); err != nil {
		return want, err
	}
	return want, want.setNodes(req.GetAccessibilityRequirements())
}

func (w *creation) setUse(capabilities []*csi.VolumeCapability) error {
	for _, capability := range capabilities {
		use, err := parseCapability(capability)
		if err != nil {
			return err
		}
		access := berth.VolumeMode(use.access)
		if w.access != "" && w.access != access {
			return fmt.Errorf("%w: a volume is a filesystem or a block device, not both", volume.ErrInvalid)
		}
		w.access = access
		if use.fsType != "" {
			// The capability is the CO's word for the class's parameter; it has the same
			// rules.
			if w.params, err = w.params.WithFSType(use.fsType); err != nil {
				return err
			}
		}
	}
	if w.params.Mode == berth.ModeHostpath && w.access == berth.VolumeBlock {
		return fmt.Errorf("%w: mode hostpath has no block volumes; use mode lvm or device", volume.ErrInvalid)
	}
	return nil
}

func (w *creation) setSize(r *csi.CapacityRange) error {
	if err := checkRange(r); err != nil {
		return err
	}
	w.leastBytes, w.limitBytes = r.GetRequiredBytes(), r.GetLimitBytes()
	if w.leastBytes == 0 {
		w.leastBytes = defaultSizeBytes
		if w.limitBytes > 0 {
			w.leastBytes = min(w.leastBytes, w.limitBytes)
		}
	}
	return nil
}

// checkRange refuses ranges that nothing can be in.
func checkRange(r *csi.CapacityRange) error {
	least, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	if least < 0 || limit < 0 || limit > 0 && limit < least {
		return fmt.Errorf("%w: capacity_range from %d to %d bytes is none", volume.ErrInvalid, least, limit)
	}
	return nil
}

func (w *creation) setNodes(requirement *csi.TopologyRequirement) error {
	for _, topology := range slices.Concat(requirement.GetPreferred(), requirement.GetRequisite()) {
		node := topology.GetSegments()[berth.TopologyKeyNode]
		if node == "" {
			return fmt.Errorf("%w: accessibility_requirements: a topology has no segment %s", volume.ErrInvalid, berth.TopologyKeyNode)
		}
		if !slices.Contains(w.nodes, node) {
			w.nodes = append(w.nodes, node)
		}
	}
	return nil
}

func (w *creation) request(node, csiName string) provision.Request {
	spec := w.params.Spec(node, w.leastBytes, w.access)
	spec.Limits = w.limits
	req := provision.Request{Name: w.name, Spec: spec, Pools: w.params.Pools, Labels: provision.Labels(spec)}
	if csiName != w.name {
		req.Annotations = map[string]string{annotationCSIName: csiName}
	}
	return req
}

// candidates are the nodes the CO names, else those that offer enough.
func (c *Controller) candidates(ctx context.Context, want creation) ([]string, error) {
	if len(want.nodes) > 0 {
		return want.nodes, nil
	}
	offers, err := c.offers.List(ctx, &want.params)
	if err != nil {
		return nil, err
	}
	var nodes []string
	for _, offer := range offers {
		if offer.MaxVolumeBytes >= want.leastBytes {
			nodes = append(nodes, offer.Node)
		}
	}
	if len(nodes) == 0 {
		return nil, fmt.Errorf("%w: no node offers %d bytes in mode %s", volume.ErrNoSpace, want.leastBytes, want.params.Mode)
	}
	return nodes, nil
}

// same returns the existing volume of that name if it is what is asked for.
func (c *Controller) same(ctx context.Context, existing *berth.LocalVolume, want creation) (*csi.CreateVolumeResponse, error) {
	have := existing.Spec
	size := csiVolume(existing).GetCapacityBytes()
	var differs string
	spec := want.params.Spec(have.NodeName, want.leastBytes, want.access)
	if want.copyOf != nil {
		spec.FSType, spec.MkfsOptions = have.FSType, have.MkfsOptions // those of its source
	}
	switch {
	case have.ClaimRef != nil:
		differs = "it belongs to a claim"
	case !sameSource(have.Source, want.copyOf):
		differs = "it began as a copy of something else"
	case len(want.nodes) > 0 && !slices.Contains(want.nodes, have.NodeName):
		differs = "it is on node " + have.NodeName
	case have.Mode != spec.Mode || have.Pool != "" && !slices.Contains(want.params.Pools, have.Pool) || have.VolumeMode != spec.VolumeMode || have.FSType != spec.FSType || have.Wipe != spec.Wipe || !slices.Equal(have.MkfsOptions, spec.MkfsOptions):
		differs = fmt.Sprintf("it is of mode %s, pool %q, volume mode %s, filesystem %q, wipe %s", have.Mode, have.Pool, have.VolumeMode, have.FSType, have.Wipe)
	case have.RequireQuota != spec.RequireQuota:
		differs = fmt.Sprintf("its requireQuota is %t", have.RequireQuota)
	case provision.RetentionOf(have) != provision.RetentionOf(spec):
		differs = fmt.Sprintf("its retainFor is %s", provision.RetentionOf(have))
	case have.Encryption != spec.Encryption:
		differs = fmt.Sprintf("it has the encryption %q", have.Encryption)
	case !provision.SameLimits(have.Limits, want.limits):
		differs = "it has other limits"
	case size < want.leastBytes || want.limitBytes > 0 && size > want.limitBytes:
		differs = fmt.Sprintf("it has %d bytes", size)
	}
	if differs != "" {
		return nil, fmt.Errorf("volume %s: %w: %s", want.name, volume.ErrExists, differs)
	}
	lv, err := c.volumes.Ensure(ctx, provision.Request{Name: want.name, Spec: have, Labels: existing.Labels, Annotations: existing.Annotations})
	if err != nil {
		return nil, err
	}
	return c.within(ctx, lv, want.limitBytes)
}

// within returns the volume, unless it came out larger than the CO allows, which
// happens with whole disks. Then it is taken back.
func (c *Controller) within(ctx context.Context, lv *berth.LocalVolume, limitBytes int64) (*csi.CreateVolumeResponse, error) {
	made := csiVolume(lv)
	if limitBytes == 0 || made.GetCapacityBytes() <= limitBytes {
		return &csi.CreateVolumeResponse{Volume: made}, nil
	}
	if err := c.volumes.Delete(ctx, lv.Name); err != nil {
		return nil, err
	}
	return nil, status.Errorf(codes.OutOfRange, "the smallest volume that node %s can make has %d bytes, and capacity_range ends at %d",
		lv.Spec.NodeName, made.GetCapacityBytes(), limitBytes)
}

// DeleteVolume deletes a volume and returns when its node has proven that nothing
// of it is left. A volume that does not exist is deleted already.
func (c *Controller) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	if !isObjectName(req.GetVolumeId()) {
		return &csi.DeleteVolumeResponse{}, nil // nothing of ours was ever called so
	}
	release, err := c.busy.take(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer release()
	if err := c.volumes.Delete(ctx, req.GetVolumeId()); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, nil
}
