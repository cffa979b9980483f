// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// What an orphan lacks.
const (
	// noPersistentVolume: a LocalVolume that nothing leads to.
	noPersistentVolume = "NoPersistentVolume"
	// noLocalVolume: a PersistentVolume, a volume on a node or a claim on a disk.
	noLocalVolume = "NoLocalVolume"
	// noLocalSnapshot: a snapshot on a node, or a VolumeSnapshotContent.
	noLocalSnapshot = "NoLocalSnapshot"
	// noSnapshotContent: a LocalSnapshot that nothing leads to.
	noSnapshotContent = "NoVolumeSnapshotContent"
	// noPool: a claim on a disk.
	noPool = "NoPool"
	// noStorage: a LocalVolume, or an entry of a node's ledger.
	noStorage = "NoStorage"
	// noRecord: a directory among those of volumes.
	noRecord = "NoRecord"
)

// orphanRow is something that the other half of is missing.
type orphanRow struct {
	Node string `json:"node,omitempty"`
	// Object is what is there: an object as kubectl names it, or something in a pool, as
	// POOL: LOCATION.
	Object string `json:"object"`
	// Lacks is the other half.
	Lacks string `json:"lacks"`
	Claim string `json:"claim,omitempty"`
	Bytes int64  `json:"sizeBytes"`
	// UID is that of the object that is missing, by which the thing on a disk is named.
	UID types.UID `json:"uid,omitempty"`
	// Pool is the Pool that it lies in, and Identity what names it in full; empty for objects.
	Pool     string `json:"pool,omitempty"`
	Identity string `json:"identity,omitempty"`
	// Message says what it is and what can be done.
	Message string `json:"message"`
}

// orphanSearch is what the rows are made from.
type orphanSearch struct {
	volumes berth.LocalVolumeList
	pools   berth.PoolList
	disks   berth.BlockDeviceList
	pvs     corev1.PersistentVolumeList
	claims  corev1.PersistentVolumeClaimList
	rows    []orphanRow
}

// orphans lists what is left over, or makes a volume of some of it, or removes that.
func (p *plugin) orphans(ctx context.Context, args []string) (bool, error) {
	switch {
	case args[0] == "list" && len(args) == 1:
		return p.listOrphans(ctx)
	case args[0] == "purge" && len(args) == 2: //nolint:mnd // and what
		return p.purge(ctx, args[1])
	case args[0] == "adopt" && len(args) == 2: //nolint:mnd // and what
		return p.adopt(ctx, args[1])
	}
	return false, fmt.Errorf("%w: kubectl berth orphans list, or adopt or purge NODE/POOL/UID or NODE/DISK; there is no %q", errUsage, strings.Join(args, " "))
}

// listOrphans lists what is left over; it is troubled when there is something.
func (p *plugin) listOrphans(ctx context.Context) (bool, error) {
	s := &orphanSearch{rows: []orphanRow{}}
	// A volume comes before the PersistentVolume that leads to it and before the claim on a disk
	// that it holds, and a claim waits until its PersistentVolume stands: read in this order,
	// what is just being made is not taken for an orphan. What may have changed between two
	// reads is read once more.
	if err := p.list(ctx, &s.disks, "BlockDevices"); err != nil {
		return false, err
	}
	if err := p.list(ctx, &s.pools, "Pools"); err != nil {
		return false, err
	}
	if err := p.list(ctx, &s.volumes, "LocalVolumes"); err != nil {
		return false, err
	}
	if err := p.list(ctx, &s.claims, "claims"); err != nil {
		return false, err
	}
	if err := p.list(ctx, &s.pvs, "PersistentVolumes"); err != nil {
		return false, err
	}
	s.searchVolumes()
	if err := p.searchPersistentVolumes(ctx, s); err != nil {
		return false, err
	}
	s.searchPools()
	if err := p.searchSnapshots(ctx, s); err != nil {
		return false, err
	}
	if err := p.searchDisks(ctx, s); err != nil {
		return false, err
	}
	slices.SortFunc(s.rows, func(a, b orphanRow) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Object, b.Object)) })
	if err := printList(p, []column{
		{title: "NODE"}, {title: "WHAT"}, {title: "LACKS"}, {title: "SIZE"}, {title: "CLAIM"}, {title: "WHY"}, {title: "UID", wide: true},
	}, s.rows, func(r orphanRow) []string {
		return []string{orNone(r.Node), r.Object, r.Lacks, bytes(r.Bytes), orNone(r.Claim), p.short(r.Message), orNone(string(r.UID))}
	}); err != nil {
		return false, err
	}
	return len(s.rows) > 0, p.warnOfSilent(ctx, s)
}

// warnOfSilent names the nodes of which nobody knows how they are now.
func (p *plugin) warnOfSilent(ctx context.Context, s *orphanSearch) error {
	agents, err := p.agents(ctx)
	if err != nil {
		return err
	}
	silent := map[string]bool{}
	for i := range s.pools.Items {
		node := s.pools.Items[i].Spec.NodeName
		if pod := agents[node]; pod != nil {
			if ok, _ := podReady(pod); ok {
				continue
			}
		}
		silent[node] = true
	}
	for _, node := range slices.Sorted(maps.Keys(silent)) {
		fmt.Fprintf(p.errs, "Node %s has no agent that is ready: what is shown of its pools is what it has said last.\n", node)
	}
	return nil
}

func (s *orphanSearch) add(row orphanRow, format string, args ...any) {
	row.Message = fmt.Sprintf(format, args...)
	s.rows = append(s.rows, row)
}

// searchVolumes finds LocalVolumes that nothing leads to, and those whose storage is gone.
func (s *orphanSearch) searchVolumes() {
	handles := map[string]bool{}
	for i := range s.pvs.Items {
		if csi := s.pvs.Items[i].Spec.CSI; csi != nil && csi.Driver == berth.DriverName {
			handles[csi.VolumeHandle] = true
		}
	}
	waiting := map[types.UID]bool{} // claims that a PersistentVolume is being made for
	for i := range s.claims.Items {
		if c := &s.claims.Items[i]; c.Spec.VolumeName == "" {
			waiting[c.UID] = true
		}
	}
	for i := range s.volumes.Items {
		lv := &s.volumes.Items[i]
		row := orphanRow{Node: lv.Spec.NodeName, Object: "localvolume/" + lv.Name, Bytes: lv.Spec.SizeBytes}
		ref := lv.Spec.ClaimRef
		if ref != nil {
			row.Claim = ref.Namespace + "/" + ref.Name
		}
		if c := meta.FindStatusCondition(lv.Status.Conditions, berth.LocalVolumeReady); c != nil && c.Status == metav1.ConditionFalse && c.Reason == berth.ReasonMissing {
			missing := row
			missing.Lacks = noStorage
			s.add(missing, "its storage is gone from the node: %s", c.Message)
		}
		if handles[lv.Name] || lv.DeletionTimestamp != nil || ref != nil && waiting[ref.UID] {
			continue
		}
		row.Lacks = noPersistentVolume
		s.add(row, "its data are kept; to use them, make a PersistentVolume with this volumeHandle; to erase them: kubectl annotate localvolume %s %s=true, then kubectl delete localvolume %s",
			lv.Name, allowDelete, lv.Name)
	}
}

// searchPersistentVolumes finds those that lead to nothing. One that the provisioner is about to
// delete does for a moment.
func (p *plugin) searchPersistentVolumes(ctx context.Context, s *orphanSearch) error {
	there := map[string]bool{}
	for i := range s.volumes.Items {
		there[s.volumes.Items[i].Name] = true
	}
	for i := range s.pvs.Items {
		pv := &s.pvs.Items[i]
		csi := pv.Spec.CSI
		leaving := pv.DeletionTimestamp != nil || pv.Status.Phase == corev1.VolumeReleased && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
		if csi == nil || csi.Driver != berth.DriverName || there[csi.VolumeHandle] || leaving {
			continue
		}
		err := p.client.Get(ctx, client.ObjectKey{Name: csi.VolumeHandle}, &berth.LocalVolume{})
		switch {
		case err == nil:
			continue
		case !apierrors.IsNotFound(err):
			return fmt.Errorf("read LocalVolume %s: %w", csi.VolumeHandle, err)
		}
		row := orphanRow{Node: nodeOf(pv), Object: "pv/" + pv.Name, Lacks: noLocalVolume, Bytes: pv.Spec.Capacity.Storage().Value()}
		if ref := pv.Spec.ClaimRef; ref != nil {
			row.Claim = ref.Namespace + "/" + ref.Name
		}
		s.add(row, "pods go on using it as long as its node's ledger knows it; deleting it deletes no data; restore its LocalVolume %s from a backup of the API server", csi.VolumeHandle)
	}
	return nil
}

// nodeOf is the node that a PersistentVolume can be used on; empty when it does not say one.
func nodeOf(pv *corev1.PersistentVolume) string {
	if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return ""
	}
	for _, term := range pv.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, e := range term.MatchExpressions {
			if e.Key == berth.TopologyKeyNode && e.Operator == corev1.NodeSelectorOpIn && len(e.Values) == 1 {
				return e.Values[0]
			}
		}
	}
	return ""
}

// searchPools finds what agents have found in their pools.
func (s *orphanSearch) searchPools() {
	for i := range s.pools.Items {
		pool := &s.pools.Items[i]
		for _, l := range pool.Status.LeftOvers {
			row := orphanRow{Node: pool.Spec.NodeName, Object: pool.Name + ": " + cmp.Or(l.Location, string(l.UID)), Bytes: l.SizeBytes, UID: l.UID, Claim: l.Claim, Pool: pool.Name, Identity: l.Identity}
			was := ""
			if l.Name != "" {
				was = " of " + l.Name
			}
			switch l.Kind {
			case berth.LeftOverSnapshot:
				row.Lacks = noLocalSnapshot
				of := ""
				if l.Of != "" {
					of = ", of volume " + l.Of
				}
				s.add(row, "the snapshot%s%s, which no LocalSnapshot stands for; it is kept, with its room%s%s", strings.TrimPrefix(was, " of"), of, inUseOf(l), purgeOf(pool, l))
			case berth.LeftOverDirectory:
				row.Lacks = noRecord
				s.add(row, "a directory among those of volumes, which Berth has no record of and never touches")
			case berth.LeftOverRecord:
				row.Lacks = noStorage
				s.add(row, "an entry%s in the node's ledger, with neither a LocalVolume nor storage%s", was, purgeOf(pool, l))
			default:
				row.Lacks = noLocalVolume
				s.add(row, "the storage%s, which no LocalVolume stands for; it is kept, and its room is not given away%s%s", was, inUseOf(l), purgeOf(pool, l))
			}
		}
		if more := int(pool.Status.LeftOverCount) - len(pool.Status.LeftOvers); more > 0 {
			s.add(orphanRow{Node: pool.Spec.NodeName, Object: pool.Name + ": others", Lacks: noLocalVolume}, "%d more, which its status has no place for", more)
		}
	}
}

// inUseOf says where something is mounted.
func inUseOf(l berth.LeftOver) string {
	if l.InUse == "" {
		return ""
	}
	return "; in use: " + l.InUse
}

// purgeOf says how far the request is to purge something.
func purgeOf(pool *berth.Pool, l berth.LeftOver) string {
	return purgeIn(pool.Status.Purges, l.UID, "")
}

// purgeIn says how far the purge of a UID is; otherwise, when nobody has asked for it.
func purgeIn(all []berth.PurgeStatus, uid types.UID, otherwise string) string {
	for _, s := range all {
		if s.UID == string(uid) {
			return fmt.Sprintf("; to be purged, %s: %s", s.State, s.Message)
		}
	}
	return otherwise
}

// searchDisks finds claims whose holder is gone. A disk that is Released waits for its wipe,
// and for nobody.
func (p *plugin) searchDisks(ctx context.Context, s *orphanSearch) error {
	volumes, pools := map[types.UID]bool{}, map[string]bool{}
	for i := range s.volumes.Items {
		volumes[s.volumes.Items[i].UID] = true
	}
	for i := range s.pools.Items {
		pools[s.pools.Items[i].Name] = true // one that was made anew has another UID than its disks say
	}
	lacks := func(d *berth.BlockDevice) string {
		ref := d.Spec.ClaimRef
		switch {
		case ref == nil || d.Status.ClaimState == berth.ClaimStateReleased:
		case ref.Kind == "Pool" && !pools[ref.Name]:
			return noPool
		case ref.Kind == "LocalVolume" && !volumes[ref.UID]:
			return noLocalVolume
		}
		return ""
	}
	for i := range s.disks.Items {
		if lacks(&s.disks.Items[i]) == "" {
			continue
		}
		d := &berth.BlockDevice{}
		if err := p.client.Get(ctx, client.ObjectKeyFromObject(&s.disks.Items[i]), d); apierrors.IsNotFound(err) {
			continue
		} else if err != nil {
			return fmt.Errorf("read BlockDevice %s: %w", s.disks.Items[i].Name, err)
		}
		row := orphanRow{Node: d.Spec.NodeName, Object: "blockdevice/" + d.Name, Bytes: d.Status.SizeBytes, Lacks: lacks(d)}
		switch row.Lacks {
		case noPool:
			row.UID = d.Spec.ClaimRef.UID
			s.add(row, "%s is held by Pool %s, which is gone; it is kept", orNone(d.Status.Path), d.Spec.ClaimRef.Name)
		case noLocalVolume:
			row.UID, row.Identity = d.Spec.ClaimRef.UID, leftOverOnDisk(d).Identity
			s.add(row, "%s is held by LocalVolume %s, which is gone; its data are kept, and nobody gets it%s",
				orNone(d.Status.Path), d.Spec.ClaimRef.Name, purgeIn(d.Status.Purges, row.UID, fmt.Sprintf("; to use them again: kubectl berth orphans adopt %[1]s/%[2]s; when they are not needed any more: kubectl berth orphans purge %[1]s/%[2]s", d.Spec.NodeName, d.Name)))
		}
	}
	return nil
}
