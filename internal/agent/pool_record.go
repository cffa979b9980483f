// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/lvm"
)

const poolRecordVersion = 1

// poolRecord is the node's own record of a pool, beside its status: what the pool is
// known by on the disks. It is written before anything is made.
type poolRecord struct {
	SchemaVersion int               `json:"schemaVersion"`
	PoolSet       string            `json:"poolSet"`
	Kind          v1alpha1.PoolKind `json:"kind"`
	MachineID     string            `json:"machineID"`
	// PoolUID is the UID of the Pool object when the pool was made. It marks the volume
	// group or the root, also after the object was made anew (etcd restored).
	PoolUID string `json:"poolUID"`
	// VGName of kind lvm; VGUUID is empty until the volume group stands.
	VGName string `json:"vgName,omitempty"`
	VGUUID string `json:"vgUUID,omitempty"`
	// Adoption is set for a volume group that Berth has not made. No disk is claimed for it.
	Adoption adoption `json:"adoption,omitempty"`
	// ThinPoolName and ThinPoolUUID are set for a thin pool in it that Berth has not made.
	ThinPoolName string `json:"thinPoolName,omitempty"`
	ThinPoolUUID string `json:"thinPoolUUID,omitempty"`
	// Disks are the BlockDevices that are part of the volume group.
	Disks []string `json:"disks,omitempty"`
	// Evacuating are those of them that are being emptied, or were, and whose claims have not
	// ended yet.
	Evacuating []string `json:"evacuating,omitempty"`
	// Layout of the volumes of kind lvm; empty is linear, as all were before there was
	// another.
	Layout v1alpha1.PoolLayout `json:"layout,omitempty"`
	// Thin is true for volumes that share a thin pool.
	Thin bool `json:"thin,omitempty"`
	// Path of kind hostpath; RootID is empty until the root stands.
	Path   string `json:"path,omitempty"`
	RootID string `json:"rootID,omitempty"`

	// Removal is how far the removal of the pool has come.
	Removal removal `json:"removal,omitempty"`
}

type removal string

const (
	// removalBegun: the group was proven empty and is being removed.
	removalBegun removal = "Begun"
	// removalDone: nothing of it is left; only the Pool object may be.
	removalDone removal = "Done"
	// removalLeft: the Pool of kind hostpath was deleted while nothing was in it. The root is
	// as it was: a PoolSet that names it takes it up again, another one begins anew.
	removalLeft removal = "Left"
)

// adoption is how far a volume group that somebody else has made has become a pool.
type adoption string

const (
	// adoptionAsked: the PoolSet names it. Nothing is proven yet.
	adoptionAsked adoption = "Asked"
	// adoptionSeen: this node has it, and says so in its Pool, for other nodes to see.
	adoptionSeen adoption = "Seen"
	// adoptionDone: no other node has said so. Volumes may be in it.
	adoptionDone adoption = "Done"
)

// removalsOf are how far the removal of a pool can have come, by its kind.
var removalsOf = map[v1alpha1.PoolKind][]removal{
	v1alpha1.PoolLVM:      {"", removalBegun, removalDone},
	v1alpha1.PoolHostpath: {"", removalLeft},
}

func (r *poolRecord) validate() error {
	switch {
	case r.SchemaVersion != poolRecordVersion:
		return fmt.Errorf("schemaVersion %d: this Berth understands %d", r.SchemaVersion, poolRecordVersion)
	case len(validation.IsDNS1123Label(r.PoolSet)) > 0:
		return fmt.Errorf("poolSet %q is not a PoolSet's name", r.PoolSet)
	case r.MachineID == "" || r.PoolUID == "":
		return errors.New("machineID or poolUID is empty")
	case !slices.Contains(removalsOf[r.Kind], r.Removal):
		return fmt.Errorf("removal %q of kind %q", r.Removal, r.Kind)
	case r.Adoption != "" && !slices.Contains([]adoption{adoptionAsked, adoptionSeen, adoptionDone}, r.Adoption),
		r.Adoption != "" && (r.Kind != v1alpha1.PoolLVM || r.VGUUID == "" || len(r.Disks) > 0 || r.layout().Redundant()):
		return fmt.Errorf("adoption %q of volume group %q of kind %q, type %s, with %d disks", r.Adoption, r.VGUUID, r.Kind, r.typeName(), len(r.Disks))
	case (r.ThinPoolName == "") != (r.ThinPoolUUID == ""),
		(r.Adoption != "" && r.Thin) != (r.ThinPoolUUID != ""):
		return fmt.Errorf("thin pool %q (%s) of adoption %q, type %s", r.ThinPoolName, r.ThinPoolUUID, r.Adoption, r.typeName())
	case len(r.Evacuating) > 0 && (r.Kind != v1alpha1.PoolLVM || r.VGUUID == "" || r.Adoption != ""):
		return fmt.Errorf("disks that are being emptied of volume group %q of kind %q, adoption %q", r.VGUUID, r.Kind, r.Adoption)
	case r.Thin && r.Kind != v1alpha1.PoolLVM:
		return fmt.Errorf("a thin pool of kind %q", r.Kind)
	case r.Layout != "" && (r.Kind != v1alpha1.PoolLVM || r.layout().Check() != nil):
		return fmt.Errorf("layout %q of kind %q", r.Layout, r.Kind)
	case r.Kind == v1alpha1.PoolLVM && r.VGName != "" && r.Path == "" && r.RootID == "":
		return nil
	case r.Kind == v1alpha1.PoolHostpath && r.Path != "" && r.VGName == "" && r.VGUUID == "" && len(r.Disks) == 0:
		return nil
	}
	return fmt.Errorf("the fields do not fit the kind %q", r.Kind)
}

// layout of the volumes of kind lvm.
func (r *poolRecord) layout() lvm.Layout {
	return lvm.Layout(cmp.Or(r.Layout, v1alpha1.LayoutLinear))
}

// typeName is how users know what the pool is.
func (r *poolRecord) typeName() string {
	switch {
	case r.Kind == v1alpha1.PoolHostpath:
		return string(v1alpha1.PoolHostpath)
	case r.Thin && r.layout() == lvm.LayoutLinear:
		return typeThin
	case r.Thin:
		return typeThin + "-" + string(r.layout())
	}
	return string(r.layout())
}

// typeThin is a thin pool of layout linear; of another one it is followed by the layout.
const typeThin = "thin"

// where is the volume group, or the thin pool in it that was adopted.
func (r *poolRecord) where() string {
	if r.ThinPoolName != "" {
		return r.VGName + "/" + r.ThinPoolName
	}
	return r.VGName
}

func (r *poolRecord) key() string { return r.PoolSet }

func (r *poolRecord) stamp() { r.SchemaVersion = poolRecordVersion }

// poolRecords has one record for each pool, by its PoolSet.
type poolRecords struct {
	recordStore[poolRecord, *poolRecord]
}

func newPoolRecords(dir string) poolRecords {
	isKey := func(poolSet string) bool { return len(validation.IsDNS1123Label(poolSet)) == 0 }
	return poolRecords{recordStore[poolRecord, *poolRecord]{dir: dir, of: "pool", isKey: isKey}}
}

// RecordedPools is the directory with the node's records of its pools.
type RecordedPools string

// Of returns the pool whose volume group a disk is part of, empty for none. A disk is
// released after its pool's record says that it has left, or that the pool is being
// removed. A record that cannot be read is an error: it may be of this disk.
func (d RecordedPools) Of(diskName string) (pool string, err error) {
	records := newPoolRecords(string(d))
	names, err := records.keys()
	if err != nil {
		return "", err
	}
	for _, name := range names {
		rec, err := records.load(name)
		if err != nil {
			return "", err
		}
		if rec != nil && rec.Removal == "" && slices.Contains(rec.Disks, diskName) {
			return name, nil
		}
	}
	return "", nil
}

// roots are the paths of all pools of kind hostpath that have a record.
func (d poolRecords) roots() ([]string, error) {
	names, err := d.keys()
	if err != nil {
		return nil, err
	}
	var roots []string
	for _, name := range names {
		rec, err := d.load(name)
		if err != nil {
			return nil, err
		}
		if rec != nil && rec.Path != "" {
			roots = append(roots, rec.Path)
		}
	}
	return roots, nil
}
