// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"k8s.io/apimachinery/pkg/util/validation"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/pkg/volume"
)

// LocalVolumes creates, deletes, grows, limits and lists LocalVolumes.
// internal/provision.Volumes implements it.
type LocalVolumes interface {
	Ensure(ctx context.Context, req provision.Request) (*berth.LocalVolume, error)
	Delete(ctx context.Context, name string) error
	Grow(ctx context.Context, name string, sizeBytes int64) (*berth.LocalVolume, error)
	Limit(ctx context.Context, name string, limits *berth.VolumeLimits) (*berth.LocalVolume, error)
	Find(ctx context.Context, name string) (*berth.LocalVolume, error)
	List() []*berth.LocalVolume
}

// Snapshots takes, finds and deletes LocalSnapshots. internal/provision.Snapshots
// implements it.
type Snapshots interface {
	Ensure(ctx context.Context, name string, lv *berth.LocalVolume) (*berth.LocalSnapshot, error)
	Delete(ctx context.Context, name string) error
	Find(ctx context.Context, name string) (*berth.LocalSnapshot, error)
	List(ctx context.Context) ([]berth.LocalSnapshot, error)
}

// Offers tells what the nodes could still make. internal/provision.Offers
// implements it.
type Offers interface {
	// List returns what each node offers for these parameters, the largest volume
	// first. A nil value asks for everything that Berth has.
	List(ctx context.Context, params *provision.Parameters) ([]provision.Offer, error)
}

// Controller is the CSI Controller service. It serves the standard sidecars, such
// as csi-resizer, and any other CO. In Kubernetes, volumes are created and deleted
// by internal/provision, through the same LocalVolumes.
//
// A request for a volume that another request is busy with is answered with
// ABORTED at once.
type Controller struct {
	csi.UnimplementedControllerServer

	volumes   LocalVolumes
	offers    Offers
	snapshots Snapshots
	log       *slog.Logger
	busy      busyVolumes
}

var _ csi.ControllerServer = (*Controller)(nil)

// NewController returns the service. Without snapshots (nil) it says that it has none, and
// makes no copies.
func NewController(volumes LocalVolumes, offers Offers, snapshots Snapshots, log *slog.Logger) *Controller {
	return &Controller{volumes: volumes, offers: offers, snapshots: snapshots, log: log}
}

// ControllerGetCapabilities says what is served.
func (c *Controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	response := &csi.ControllerGetCapabilitiesResponse{}
	kinds := []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_MODIFY_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	}
	if c.snapshots != nil {
		kinds = append(kinds,
			csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
			csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
			csi.ControllerServiceCapability_RPC_CLONE_VOLUME)
	}
	for _, kind := range kinds {
		response.Capabilities = append(response.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: kind}},
		})
	}
	return response, nil
}

// ValidateVolumeCapabilities confirms what the volume can be used for.
func (c *Controller) ValidateVolumeCapabilities(ctx context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if err := required("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, fmt.Errorf("%w: volume_capabilities is missing", volume.ErrInvalid)
	}
	lv, err := c.find(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	made := Volume{Name: lv.Name, Access: volume.Access(lv.Spec.VolumeMode), FSType: lv.Spec.FSType}
	for _, capability := range req.GetVolumeCapabilities() {
		use, refusal := parseCapability(capability)
		if refusal == nil {
			refusal = use.fits(made)
		}
		if refusal != nil {
			// Not confirmed is an answer, not an error (CSI 1.13, ValidateVolumeCapabilities).
			return &csi.ValidateVolumeCapabilitiesResponse{Message: refusal.Error()}, nil //nolint:nilerr // see above
		}
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      req.GetVolumeContext(),
		VolumeCapabilities: req.GetVolumeCapabilities(),
		Parameters:         req.GetParameters(),
	}}, nil
}

// cannotServe is true if no volume is ever made with this capability.
func cannotServe(capability *csi.VolumeCapability) bool {
	_, err := parseCapability(capability)
	return err != nil
}

// GetCapacity sums up what the nodes could still make, as the agents publish it.
func (c *Controller) GetCapacity(ctx context.Context, req *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	if slices.ContainsFunc(req.GetVolumeCapabilities(), cannotServe) {
		return &csi.GetCapacityResponse{}, nil
	}
	var params *provision.Parameters
	if len(req.GetParameters()) > 0 {
		parsed, err := provision.ParseParameters(withoutMetadata(req.GetParameters()))
		if err != nil {
			return nil, err
		}
		params = &parsed
	}
	offers, err := c.offers.List(ctx, params)
	if err != nil {
		return nil, err
	}
	node, named := req.GetAccessibleTopology().GetSegments()[berth.TopologyKeyNode]
	response := &csi.GetCapacityResponse{}
	var largest int64
	for _, offer := range offers {
		if named && offer.Node != node {
			continue
		}
		response.AvailableCapacity += offer.FreeBytes
		largest = max(largest, offer.MaxVolumeBytes)
	}
	response.MaximumVolumeSize = wrapperspb.Int64(largest)
	response.MinimumVolumeSize = wrapperspb.Int64(1)
	return response, nil
}

// tokenPrefix marks a page's token as ours.
const tokenPrefix = "after:"

// ListVolumes lists by name. A token names the last volume of the page before, so
// a page is right even when volumes come and go in between.
func (c *Controller) ListVolumes(_ context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	limit := int(req.GetMaxEntries())
	if limit < 0 {
		return nil, fmt.Errorf("%w: max_entries is %d", volume.ErrInvalid, limit)
	}
	all := c.volumes.List()
	if token := req.GetStartingToken(); token != "" {
		after, ours := strings.CutPrefix(token, tokenPrefix)
		if !ours {
			// The code that the CSI specification gives to a bad token.
			return nil, status.Errorf(codes.Aborted, "starting_token %q is not one of ours; begin anew without one", token)
		}
		from, found := slices.BinarySearchFunc(all, after, func(lv *berth.LocalVolume, name string) int { return strings.Compare(lv.Name, name) })
		if found {
			from++
		}
		all = all[from:]
	}
	response := &csi.ListVolumesResponse{}
	if limit > 0 && len(all) > limit {
		all = all[:limit]
		response.NextToken = tokenPrefix + all[limit-1].Name
	}
	for _, lv := range all {
		response.Entries = append(response.Entries, &csi.ListVolumesResponse_Entry{Volume: csiVolume(lv)})
	}
	return response, nil
}

// find returns the LocalVolume of a volume ID.
func (c *Controller) find(ctx context.Context, volumeID string) (*berth.LocalVolume, error) {
	return findVolume(ctx, c.volumes, volumeID)
}

func findVolume(ctx context.Context, volumes LocalVolumes, volumeID string) (*berth.LocalVolume, error) {
	if !isObjectName(volumeID) {
		return nil, fmt.Errorf("volume %q: %w: no volume of ours has such an ID", volumeID, volume.ErrNotFound)
	}
	return volumes.Find(ctx, volumeID)
}

// csiVolume is a LocalVolume in CSI's terms.
func csiVolume(lv *berth.LocalVolume) *csi.Volume {
	v := &csi.Volume{
		VolumeId:           lv.Name,
		CapacityBytes:      lv.Spec.SizeBytes,
		VolumeContext:      provision.VolumeAttributes(lv),
		AccessibleTopology: []*csi.Topology{{Segments: map[string]string{berth.TopologyKeyNode: lv.Spec.NodeName}}},
		ContentSource:      contentSource(lv.Spec.Source),
	}
	if lv.Status.Capacity != nil {
		v.CapacityBytes = lv.Status.Capacity.Value()
	}
	return v
}

// isObjectName reports whether a Kubernetes object can have that name.
func isObjectName(name string) bool { return len(validation.IsDNS1123Subdomain(name)) == 0 }

// objectName is the name of the LocalVolume for a CSI volume name: the same where
// Kubernetes allows it, as it does for every name Kubernetes makes, else a hash.
func objectName(name string) string {
	if isObjectName(name) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "vol-" + hex.EncodeToString(sum[:20])
}

// busyVolumes are the volumes with a request under way. The zero value is ready.
type busyVolumes struct {
	mu    sync.Mutex
	names map[string]struct{}
}

// take marks a volume as busy, or returns volume.ErrBusy. It does not wait: the
// holder may wait for a node, and the CO asks again by itself.
func (b *busyVolumes) take(name string) (release func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, busy := b.names[name]; busy {
		return nil, fmt.Errorf("%w: another request for volume %s is under way", volume.ErrBusy, name)
	}
	if b.names == nil {
		b.names = map[string]struct{}{}
	}
	b.names[name] = struct{}{}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.names, name)
	}, nil
}
