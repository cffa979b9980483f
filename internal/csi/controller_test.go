// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	berthcsi "github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/internal/provision/provisiontest"
)

const gib = int64(1) << 30

func pool(node string, freeBytes int64) *berth.Pool {
	return &berth.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: "fast-" + node},
		Spec:       berth.PoolSpec{NodeName: node, PoolSetName: "fast", Kind: berth.PoolLVM},
		Status: berth.PoolStatus{
			Free:       resource.NewQuantity(freeBytes, resource.BinarySI),
			Conditions: []metav1.Condition{{Type: berth.PoolReady, Status: metav1.ConditionTrue, Reason: berth.ReasonPoolReady}},
		},
	}
}

// newController serves two nodes, of which the second has more room.
func newController(t *testing.T) (*berthcsi.Controller, *provisiontest.Cluster, map[string]*provisiontest.Agent) {
	t.Helper()
	c := provisiontest.New(t, pool("node1", 10*gib), pool("node2", 20*gib))
	agents := map[string]*provisiontest.Agent{"node1": c.NewAgent(t, "node1", 10*gib), "node2": c.NewAgent(t, "node2", 20*gib)}
	return berthcsi.NewController(c.Volumes, provision.Offers{Live: c.Client}, nil, slog.New(slog.DiscardHandler)), c, agents
}

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func mounted(mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
	}
}

func create(name string, change ...func(*csi.CreateVolumeRequest)) *csi.CreateVolumeRequest {
	req := &csi.CreateVolumeRequest{
		Name:               name,
		Parameters:         map[string]string{"mode": "lvm", "pool": "fast"},
		CapacityRange:      &csi.CapacityRange{RequiredBytes: gib},
		VolumeCapabilities: []*csi.VolumeCapability{mounted(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)},
	}
	for _, c := range change {
		c(req)
	}
	return req
}

func on(nodes ...string) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) {
		r.AccessibilityRequirements = &csi.TopologyRequirement{}
		for _, node := range nodes {
			r.AccessibilityRequirements.Requisite = append(r.AccessibilityRequirements.Requisite,
				&csi.Topology{Segments: map[string]string{berth.TopologyKeyNode: node}})
		}
	}
}

func code(err error) codes.Code { return status.Code(berthcsi.ToStatus(err)) }

func TestCreateVolumeRefusesWithTheRightCode(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(*csi.CreateVolumeRequest)
		want   codes.Code
	}{
		"no name":         {func(r *csi.CreateVolumeRequest) { r.Name = "" }, codes.InvalidArgument},
		"no capabilities": {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = nil }, codes.InvalidArgument},
		"many writers": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities[0] = mounted(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)
		}, codes.InvalidArgument},
		"both accesses": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities = append(r.VolumeCapabilities, &csi.VolumeCapability{
				AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
				AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
			})
		}, codes.InvalidArgument},
		"a path by a claim": {func(r *csi.CreateVolumeRequest) {
			r.Parameters = map[string]string{"mode": "hostpath", "pool": "dirs", "pathTemplate": "{{.PVC.Name}}"}
		}, codes.InvalidArgument},
		"unknown parameter": {func(r *csi.CreateVolumeRequest) { r.Parameters["poool"] = "x" }, codes.InvalidArgument},
		"unknown fs":        {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0].GetMount().FsType = "ntfs" }, codes.InvalidArgument},
		"content source":    {func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = &csi.VolumeContentSource{} }, codes.InvalidArgument},
		"negative":          {func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = -1 }, codes.InvalidArgument},
		"upside down":       {func(r *csi.CreateVolumeRequest) { r.CapacityRange.LimitBytes = 1 }, codes.InvalidArgument},
		"foreign topology": {func(r *csi.CreateVolumeRequest) {
			r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: map[string]string{"zone": "a"}}}}
		}, codes.InvalidArgument},
		"too large for a node": {func(r *csi.CreateVolumeRequest) { on("node1")(r); r.CapacityRange.RequiredBytes = 15 * gib }, codes.ResourceExhausted},
		"too large for any":    {func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = 50 * gib }, codes.ResourceExhausted},
		"too large for both":   {func(r *csi.CreateVolumeRequest) { on("node1", "node2")(r); r.CapacityRange.RequiredBytes = 50 * gib }, codes.ResourceExhausted},
		"unknown limit":        {func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"iops": "1"} }, codes.InvalidArgument},
		"hostpath with a limit": {func(r *csi.CreateVolumeRequest) {
			r.Parameters["mode"] = "hostpath"
			r.MutableParameters = map[string]string{"readIOPS": "1"}
		}, codes.InvalidArgument},
		"hostpath with block": {func(r *csi.CreateVolumeRequest) {
			r.Parameters["mode"] = "hostpath"
			r.VolumeCapabilities[0].AccessType = &csi.VolumeCapability_Block{}
		}, codes.InvalidArgument},
		"hostpath with fs type": {func(r *csi.CreateVolumeRequest) {
			r.Parameters["mode"] = "hostpath"
			r.VolumeCapabilities[0].GetMount().FsType = "ext4"
		}, codes.InvalidArgument},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			controller, _, agents := newController(t)
			_, err := controller.CreateVolume(timeout(t), create("vol", test.change))
			if code(err) != test.want {
				t.Errorf("got %v: %v", code(err), err)
			}
			if agents["node1"].Carved()+agents["node2"].Carved() != 0 {
				t.Error("something was made")
			}
		})
	}
}

func TestCreateVolumeChoosesANode(t *testing.T) {
	t.Parallel()
	controller, _, _ := newController(t)
	for name, test := range map[string]struct {
		req  *csi.CreateVolumeRequest
		want string
	}{
		"where the CO says":   {create("vol-a", on("node1")), "node1"},
		"where it fits":       {create("vol-b", on("node1", "node2"), func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = 12 * gib }), "node2"},
		"where there is room": {create("vol-c"), "node2"},
		"preferred before other": {create("vol-d", on("node2"), func(r *csi.CreateVolumeRequest) {
			r.AccessibilityRequirements.Preferred = []*csi.Topology{{Segments: map[string]string{berth.TopologyKeyNode: "node1"}}}
		}), "node1"},
	} {
		resp, err := controller.CreateVolume(timeout(t), test.req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := resp.GetVolume().GetAccessibleTopology()[0].GetSegments()[berth.TopologyKeyNode]; got != test.want {
			t.Errorf("%s: on %s", name, got)
		}
		if resp.GetVolume().GetVolumeContext()["pool"] != "fast" {
			t.Errorf("%s: context %v", name, resp.GetVolume().GetVolumeContext())
		}
	}
}

func TestCreateVolumeIsIdempotent(t *testing.T) {
	t.Parallel()
	controller, _, agents := newController(t)
	first, err := controller.CreateVolume(timeout(t), create("Not A Kubernetes Name"))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*csi.CreateVolumeRequest)
		want   codes.Code
	}{
		"the same": {func(*csi.CreateVolumeRequest) {}, codes.OK},
		"in the range": {func(r *csi.CreateVolumeRequest) {
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: 1, LimitBytes: 2 * gib}
		}, codes.OK},
		"larger": {func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes++ }, codes.AlreadyExists},
		"smaller": {func(r *csi.CreateVolumeRequest) {
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: 1, LimitBytes: gib - 1}
		}, codes.AlreadyExists},
		"other limits":     {func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"readIOPS": "1"} }, codes.AlreadyExists},
		"no limits":        {func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"readIOPS": "max"} }, codes.OK},
		"other filesystem": {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0].GetMount().FsType = "xfs" }, codes.AlreadyExists},
		"other node":       {on("node1"), codes.AlreadyExists},
	} {
		resp, err := controller.CreateVolume(timeout(t), create("Not A Kubernetes Name", test.change))
		if code(err) != test.want {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && resp.GetVolume().GetVolumeId() != first.GetVolume().GetVolumeId() {
			t.Errorf("%s: another volume", name)
		}
	}
	if agents["node2"].Made() != 1 {
		t.Errorf("made %d", agents["node2"].Made())
	}
	for range 2 {
		if _, err := controller.DeleteVolume(timeout(t), &csi.DeleteVolumeRequest{VolumeId: first.GetVolume().GetVolumeId()}); err != nil {
			t.Fatal(err)
		}
	}
	if agents["node2"].Carved() != 0 {
		t.Error("it is left")
	}
	for _, id := range []string{"never-heard-of", "Not/An ID"} {
		if _, err := controller.DeleteVolume(timeout(t), &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
			t.Errorf("delete %q: %v", id, err)
		}
	}
	if _, err := controller.DeleteVolume(timeout(t), &csi.DeleteVolumeRequest{}); code(err) != codes.InvalidArgument {
		t.Errorf("delete nothing: %v", err)
	}
}

func TestBusyVolumeAnswersAborted(t *testing.T) {
	t.Parallel()
	controller, c, agents := newController(t)
	agents["node1"].Pause()
	done := make(chan error, 1)
	go func() {
		_, err := controller.CreateVolume(timeout(t), create("vol", on("node1")))
		done <- err
	}()
	tick := time.Tick(time.Millisecond)
	for deadline := time.Now().Add(10 * time.Second); c.Tracker.Get("vol") == nil; <-tick {
		if time.Now().After(deadline) {
			t.Fatal("no LocalVolume was made within 10 s")
		}
	}
	if _, err := controller.DeleteVolume(timeout(t), &csi.DeleteVolumeRequest{VolumeId: "vol"}); code(err) != codes.Aborted {
		t.Errorf("got %v", err)
	}
	agents["node1"].Resume()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestControllerExpandVolume(t *testing.T) {
	t.Parallel()
	controller, c, _ := newController(t)
	if _, err := controller.CreateVolume(timeout(t), create("vol", on("node1"))); err != nil {
		t.Fatal(err)
	}
	expand := func(id string, least, limit int64) (*csi.ControllerExpandVolumeResponse, error) {
		return controller.ControllerExpandVolume(timeout(t), &csi.ControllerExpandVolumeRequest{
			VolumeId:      id,
			CapacityRange: &csi.CapacityRange{RequiredBytes: least, LimitBytes: limit},
		})
	}
	for range 2 {
		resp, err := expand("vol", 3*gib, 0)
		if err != nil || resp.GetCapacityBytes() != 3*gib || !resp.GetNodeExpansionRequired() {
			t.Errorf("%v, %v", resp, err)
		}
	}
	if got := c.Tracker.Get("vol").Spec.SizeBytes; got != 3*gib {
		t.Errorf("spec.sizeBytes is %d", got)
	}
	for name, test := range map[string]struct {
		id           string
		least, limit int64
		want         codes.Code
	}{
		"unknown":              {"nothing", gib, 0, codes.NotFound},
		"not an ID":            {"Not An ID", gib, 0, codes.NotFound},
		"no ID":                {"", gib, 0, codes.InvalidArgument},
		"no size":              {"vol", 0, 0, codes.InvalidArgument},
		"more than there is":   {"vol", 100 * gib, 0, codes.OutOfRange},
		"less than it has":     {"vol", 1, gib, codes.OutOfRange},
		"a range that is none": {"vol", 2, 1, codes.InvalidArgument},
	} {
		if _, err := expand(test.id, test.least, test.limit); code(err) != test.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDeviceDoesNotGrow(t *testing.T) {
	t.Parallel()
	controller, _, _ := newController(t)
	req := create("disk", on("node1"), func(r *csi.CreateVolumeRequest) { r.Parameters = map[string]string{"mode": "device"} })
	if _, err := controller.CreateVolume(timeout(t), req); err != nil {
		t.Fatal(err)
	}
	_, err := controller.ControllerExpandVolume(timeout(t), &csi.ControllerExpandVolumeRequest{VolumeId: "disk", CapacityRange: &csi.CapacityRange{RequiredBytes: 2 * gib}})
	if code(err) != codes.OutOfRange || !strings.Contains(err.Error(), "a whole disk cannot grow") {
		t.Errorf("got %v", err)
	}
}

func TestValidateVolumeCapabilities(t *testing.T) {
	t.Parallel()
	controller, _, _ := newController(t)
	if _, err := controller.CreateVolume(timeout(t), create("vol")); err != nil {
		t.Fatal(err)
	}
	for mode, confirmed := range map[csi.VolumeCapability_AccessMode_Mode]bool{
		csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER: true,
		csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:    false,
	} {
		resp, err := controller.ValidateVolumeCapabilities(timeout(t), &csi.ValidateVolumeCapabilitiesRequest{
			VolumeId:           "vol",
			VolumeCapabilities: []*csi.VolumeCapability{mounted(mode)},
		})
		if err != nil || (resp.GetConfirmed() != nil) != confirmed || (resp.GetMessage() == "") != confirmed {
			t.Errorf("%s: %v, %v", mode, resp, err)
		}
	}
}

func TestGetCapacity(t *testing.T) {
	t.Parallel()
	controller, _, _ := newController(t)
	for name, test := range map[string]struct {
		req  *csi.GetCapacityRequest
		free int64
		most int64
	}{
		"everything": {&csi.GetCapacityRequest{}, 30 * gib, 20 * gib},
		"of a pool":  {&csi.GetCapacityRequest{Parameters: map[string]string{"mode": "lvm", "pool": "fast"}}, 30 * gib, 20 * gib},
		"of none":    {&csi.GetCapacityRequest{Parameters: map[string]string{"mode": "lvm", "pool": "slow"}}, 0, 0},
		"of a node":  {&csi.GetCapacityRequest{AccessibleTopology: &csi.Topology{Segments: map[string]string{berth.TopologyKeyNode: "node1"}}}, 10 * gib, 10 * gib},
		"impossible": {&csi.GetCapacityRequest{VolumeCapabilities: []*csi.VolumeCapability{mounted(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)}}, 0, 0},
	} {
		resp, err := controller.GetCapacity(timeout(t), test.req)
		if err != nil || resp.GetAvailableCapacity() != test.free || resp.GetMaximumVolumeSize().GetValue() != test.most {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
	}
}

func TestListVolumesPages(t *testing.T) {
	t.Parallel()
	controller, c, _ := newController(t)
	want := []string{"vol-1", "vol-2", "vol-3"}
	for _, name := range want {
		if _, err := controller.CreateVolume(timeout(t), create(name)); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	req := &csi.ListVolumesRequest{MaxEntries: 2}
	for {
		resp, err := controller.ListVolumes(timeout(t), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range resp.GetEntries() {
			got = append(got, entry.GetVolume().GetVolumeId())
		}
		if resp.GetNextToken() == "" {
			break
		}
		// The volume that the token names goes: the next page is right all the same.
		if err := c.Volumes.Delete(timeout(t), got[len(got)-1]); err != nil {
			t.Fatal(err)
		}
		req.StartingToken = resp.GetNextToken()
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if _, err := controller.ListVolumes(timeout(t), &csi.ListVolumesRequest{StartingToken: "invalid-token"}); code(err) != codes.Aborted {
		t.Errorf("bad token: %v", err)
	}
	if _, err := controller.ListVolumes(timeout(t), &csi.ListVolumesRequest{MaxEntries: -1}); code(err) != codes.InvalidArgument {
		t.Errorf("negative: %v", err)
	}
}

func TestControllerModifyVolume(t *testing.T) {
	t.Parallel()
	controller, c, agents := newController(t)
	made, err := controller.CreateVolume(timeout(t), create("vol", on("node1"), func(r *csi.CreateVolumeRequest) {
		r.MutableParameters = map[string]string{"writeBandwidth": "1Mi", "csi.storage.k8s.io/pvc/name": "data"}
	}))
	if err != nil {
		t.Fatal(err)
	}
	id := made.GetVolume().GetVolumeId()
	limits := func() *berth.VolumeLimits {
		lv := &berth.LocalVolume{}
		if err := c.Backdoor.Get(t.Context(), client.ObjectKey{Name: id}, lv); err != nil {
			t.Fatal(err)
		}
		return lv.Spec.Limits
	}
	before := &berth.VolumeLimits{WriteBytesPerSecond: 1 << 20}
	if got := limits(); !provision.SameLimits(got, before) {
		t.Errorf("made with %+v", got)
	}
	modify := func(id string, params map[string]string) error {
		_, err := controller.ControllerModifyVolume(timeout(t), &csi.ControllerModifyVolumeRequest{VolumeId: id, MutableParameters: params})
		return err
	}
	for name, test := range map[string]struct {
		id     string
		params map[string]string
		want   codes.Code
	}{
		"no volume":      {"", map[string]string{"readIOPS": "5"}, codes.InvalidArgument},
		"unknown volume": {"other", map[string]string{"readIOPS": "5"}, codes.NotFound},
		"not an ID":      {"Not/An ID", map[string]string{"readIOPS": "5"}, codes.NotFound},
		"unknown key":    {id, map[string]string{"IOPS": "5"}, codes.InvalidArgument},
		"zero":           {id, map[string]string{"readIOPS": "0"}, codes.InvalidArgument},
	} {
		if err := modify(test.id, test.params); code(err) != test.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	agents["node1"].CannotLimit(true)
	if err := modify(id, map[string]string{"readIOPS": "5"}); code(err) != codes.InvalidArgument {
		t.Errorf("a node that cannot limit: %v", err)
	}
	if got := limits(); !provision.SameLimits(got, before) {
		t.Errorf("what was refused left %+v", got)
	}
	agents["node1"].CannotLimit(false)
	for range 2 {
		if err := modify(id, map[string]string{"readIOPS": "5", "csi.storage.k8s.io/pvc/name": "data"}); err != nil {
			t.Fatal(err)
		}
	}
	if got := limits(); !provision.SameLimits(got, &berth.VolumeLimits{ReadIOPS: 5}) {
		t.Errorf("became %+v", got)
	}
}
