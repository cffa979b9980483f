// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// loss is what is lost with a node, and what becomes of its objects.
type loss struct {
	Node string `json:"node"`
	// Machine that was the node before; empty for all that the node has.
	Machine string `json:"machine,omitempty"`
	// State of the node, in words.
	State string `json:"state"`
	// Refusals are why it is not forgotten.
	Refusals  []string       `json:"refusals,omitempty"`
	Volumes   []lostVolume   `json:"volumes"`
	Snapshots []lostSnapshot `json:"snapshots"`
	Pools     []lostPool     `json:"pools"`
	Disks     []lostDisk     `json:"disks"`
	Metadata  []keptObject   `json:"metadata"`
	// Next are the commands for what is the operator's own to delete.
	Next []string `json:"next,omitempty"`

	// removals are in the order in which they go: what is in something before that.
	removals []client.Object
	// machines are those that have made what the node has.
	machines map[string]int
}

// isLost reports whether what a machine has made on a node is lost.
func (l *loss) isLost(node, machine string) bool {
	if node != l.Node {
		return false
	}
	if machine != "" {
		l.machines[machine]++
	}
	return l.Machine == "" || machine == l.Machine
}

type lostVolume struct {
	Name string `json:"name"`
	// PersistentVolume that leads to it, with its phase and what is to become of it.
	PersistentVolume string   `json:"persistentVolume,omitempty"`
	Phase            string   `json:"phase,omitempty"`
	ReclaimPolicy    string   `json:"reclaimPolicy,omitempty"`
	Claim            string   `json:"claim,omitempty"`
	Mode             string   `json:"mode,omitempty"`
	Pool             string   `json:"pool,omitempty"`
	Bytes            int64    `json:"sizeBytes"`
	Pods             []string `json:"pods,omitempty"`
	// Removed: there is a LocalVolume, which is removed.
	Removed bool `json:"removed"`
}

type lostSnapshot struct {
	Name   string `json:"name"`
	Volume string `json:"volume"`
	Bytes  int64  `json:"restoreSizeBytes"`
}

type lostPool struct {
	Name  string `json:"name"`
	Type  string `json:"type,omitempty"`
	Bytes int64  `json:"capacityBytes"`

	group string
}

type lostDisk struct {
	keptObject

	Path   string `json:"path,omitempty"`
	Serial string `json:"serial,omitempty"`
	Bytes  int64  `json:"sizeBytes"`
	Owner  string `json:"owner,omitempty"`
}

// keptObject is one that may stay.
type keptObject struct {
	Name string `json:"name"`
	// Kept says why it stays; empty when it goes.
	Kept string `json:"kept,omitempty"`
}

func (l *loss) nothing() bool { return len(l.removals) == 0 }

// lossOf looks at what Berth has of a node.
func (p *plugin) lossOf(ctx context.Context, node string) (*loss, error) {
	l := &loss{Node: node, Machine: p.o.Machine, machines: map[string]int{}, Volumes: []lostVolume{}, Snapshots: []lostSnapshot{}, Pools: []lostPool{}, Disks: []lostDisk{}, Metadata: []keptObject{}}
	var err error
	if l.State, l.Refusals, err = p.alive(ctx, node); err != nil {
		return nil, err
	}
	for _, look := range []func(context.Context, *loss) error{p.loseSnapshots, p.loseVolumes, p.losePools, p.loseDisks, p.loseMetadata} {
		if err := look(ctx, l); err != nil {
			return nil, err
		}
	}
	return l, p.adviseReplaced(ctx, l)
}

// adviseReplaced adds, where a node is not forgotten because it lives, that some of what it has
// was made on another machine, and how to forget that.
func (p *plugin) adviseReplaced(ctx context.Context, l *loss) error {
	if len(l.Refusals) == 0 || l.Machine != "" {
		return nil
	}
	node := &corev1.Node{}
	if err := p.client.Get(ctx, client.ObjectKey{Name: l.Node}, node); err != nil {
		return client.IgnoreNotFound(err)
	}
	for _, machine := range slices.Sorted(maps.Keys(l.machines)) {
		if now := node.Status.NodeInfo.MachineID; now != "" && machine != now {
			l.Refusals = append(l.Refusals, fmt.Sprintf("It is the machine %s, and %d of its objects are of the machine %s. If it has replaced that one for good: kubectl berth forget-node %s --machine=%s",
				now, l.machines[machine], machine, l.Node, machine))
		}
	}
	return nil
}

func (p *plugin) loseSnapshots(ctx context.Context, l *loss) error {
	list := &berth.LocalSnapshotList{}
	if err := p.list(ctx, list, "LocalSnapshots"); err != nil {
		return err
	}
	for i := range list.Items {
		s := &list.Items[i]
		if !l.isLost(s.Spec.NodeName, s.Status.MachineID) {
			continue
		}
		lost := lostSnapshot{Name: s.Name, Volume: s.Spec.VolumeName}
		if s.Status.RestoreSize != nil {
			lost.Bytes = s.Status.RestoreSize.Value()
		}
		l.Snapshots = append(l.Snapshots, lost)
		l.removals = append(l.removals, s)
	}
	return nil
}

func (p *plugin) loseVolumes(ctx context.Context, l *loss) error {
	volumes, pvs, pods := &berth.LocalVolumeList{}, &corev1.PersistentVolumeList{}, &corev1.PodList{}
	for what, list := range map[string]client.ObjectList{"LocalVolumes": volumes, "PersistentVolumes": pvs, "pods": pods} {
		if err := p.list(ctx, list, what); err != nil {
			return err
		}
	}
	users := podsByClaim(pods)
	at := map[string]int{} // by volume handle
	for i := range volumes.Items {
		lv := &volumes.Items[i]
		if !l.isLost(lv.Spec.NodeName, lv.Status.MachineID) {
			continue
		}
		lost := lostVolume{Name: lv.Name, Mode: string(lv.Spec.Mode), Pool: lv.Spec.Pool, Bytes: lv.Spec.SizeBytes, Removed: true}
		if ref := lv.Spec.ClaimRef; ref != nil {
			lost.Claim = ref.Namespace + "/" + ref.Name
			lost.Pods = users[lost.Claim]
		}
		at[lv.Name] = len(l.Volumes)
		l.Volumes = append(l.Volumes, lost)
		l.removals = append(l.removals, lv)
	}
	for i := range pvs.Items {
		pv := &pvs.Items[i]
		if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != berth.DriverName {
			continue
		}
		index, ok := at[pv.Spec.CSI.VolumeHandle]
		if !ok {
			// Of which machine it was nobody knows.
			if l.Machine != "" || !isBoundTo(pv, l.Node) {
				continue
			}
			index = len(l.Volumes)
			l.Volumes = append(l.Volumes, lostVolume{Name: pv.Spec.CSI.VolumeHandle, Bytes: pv.Spec.Capacity.Storage().Value()})
		}
		lost := &l.Volumes[index]
		lost.PersistentVolume, lost.Phase, lost.ReclaimPolicy = pv.Name, string(pv.Status.Phase), string(pv.Spec.PersistentVolumeReclaimPolicy)
		if ref := pv.Spec.ClaimRef; ref != nil {
			lost.Claim = ref.Namespace + "/" + ref.Name
			lost.Pods = users[lost.Claim]
		}
		l.Next = append(l.Next, nextOf(pv)...)
	}
	slices.SortFunc(l.Volumes, func(a, b lostVolume) int { return cmp.Or(cmp.Compare(a.Claim, b.Claim), cmp.Compare(a.Name, b.Name)) })
	slices.Sort(l.Next)
	return nil
}

// nextOf is what removes a PersistentVolume whose LocalVolume is gone. Berth deletes no claim,
// and what is bound to one, or kept by its policy, is for its owner to give up.
func nextOf(pv *corev1.PersistentVolume) (commands []string) {
	if ref := pv.Spec.ClaimRef; ref != nil && pv.Status.Phase == corev1.VolumeBound {
		commands = append(commands, fmt.Sprintf("kubectl delete pvc --namespace %s %s", ref.Namespace, ref.Name))
	}
	if pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || pv.Spec.ClaimRef == nil {
		commands = append(commands, "kubectl delete pv "+pv.Name)
	}
	return commands
}

// isBoundTo reports whether the PersistentVolume can be used on the node only.
func isBoundTo(pv *corev1.PersistentVolume, node string) bool {
	if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return false
	}
	return slices.ContainsFunc(pv.Spec.NodeAffinity.Required.NodeSelectorTerms, func(term corev1.NodeSelectorTerm) bool {
		return slices.ContainsFunc(term.MatchExpressions, func(e corev1.NodeSelectorRequirement) bool {
			return e.Key == berth.TopologyKeyNode && e.Operator == corev1.NodeSelectorOpIn && slices.Equal(e.Values, []string{node})
		})
	})
}

func (p *plugin) losePools(ctx context.Context, l *loss) error {
	list := &berth.PoolList{}
	if err := p.list(ctx, list, "Pools"); err != nil {
		return err
	}
	for i := range list.Items {
		pool := &list.Items[i]
		if !l.isLost(pool.Spec.NodeName, pool.Status.MachineID) {
			continue
		}
		lost := lostPool{Name: pool.Name, Type: pool.Status.Type}
		if pool.Status.Capacity != nil {
			lost.Bytes = pool.Status.Capacity.Value()
		}
		lost.group = pool.Status.VGUUID
		l.Pools = append(l.Pools, lost)
		l.removals = append(l.removals, pool)
	}
	return nil
}

// loseDisks keeps the claims of disks whose content need not be seen: raw data in the middle of
// a whole disk, and what is left on one that was to be wiped, look blank to a node that comes
// back (ADR 3). What lvm has made of a disk does not.
func (p *plugin) loseDisks(ctx context.Context, l *loss) error {
	list := &berth.BlockDeviceList{}
	if err := p.list(ctx, list, "BlockDevices"); err != nil {
		return err
	}
	for i := range list.Items {
		d := &list.Items[i]
		if !l.isLost(d.Spec.NodeName, d.Status.MachineID) {
			continue
		}
		lost := lostDisk{keptObject: keptObject{Name: d.Name}, Path: d.Status.Path, Serial: d.Status.Serial, Bytes: d.Status.SizeBytes, Owner: ownerOf(d)}
		switch {
		case p.o.DisksDestroyed:
		case d.Status.ClaimState == berth.ClaimStateReleased:
			lost.Kept = "it is to be wiped, should it come back"
		case d.Spec.ClaimRef != nil && d.Spec.ClaimRef.Kind != "Pool":
			lost.Kept = "so that nobody else gets it, should it come back"
		}
		l.Disks = append(l.Disks, lost)
		if lost.Kept == "" {
			l.removals = append(l.removals, d)
		}
	}
	return nil
}

func (p *plugin) loseMetadata(ctx context.Context, l *loss) error {
	list := &corev1.ConfigMapList{}
	if err := p.list(ctx, list, "ConfigMaps", client.InNamespace(p.o.SystemNamespace)); err != nil {
		return err
	}
	for i := range list.Items {
		c := &list.Items[i]
		// The name of a pool has no dot, so that a node's name cannot be the beginning of another's.
		rest, ok := strings.CutPrefix(c.Name, berth.MetadataConfigMapPrefix+l.Node+".")
		if !ok || strings.Count(rest, ".") != 1 {
			continue
		}
		if l.Machine != "" && !slices.ContainsFunc(l.Pools, func(pool lostPool) bool {
			return pool.group != "" && pool.group == c.Annotations[berth.AnnotationVGUUID]
		}) {
			continue
		}
		kept := keptObject{Name: c.Name}
		if p.o.DisksDestroyed {
			l.removals = append(l.removals, c)
		} else {
			kept.Kept = "with it, disks that are saved from the node can be read on another machine"
		}
		l.Metadata = append(l.Metadata, kept)
	}
	return nil
}

// print says it to people.
func (l *loss) print(out io.Writer) error {
	fmt.Fprintf(out, "Node %s is %s.\n", l.Node, l.State)
	if l.Machine != "" {
		fmt.Fprintf(out, "This is about what was on the machine %s.\n", l.Machine)
	}
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0) //nolint:mnd // as kubectl's own tables
	rows := func(title string, count int, columns string, row func(i int) []string) {
		if count == 0 {
			return
		}
		fmt.Fprintf(w, "\n%s\n%s\n", title, columns)
		for i := range count {
			fmt.Fprintln(w, strings.Join(row(i), "\t"))
		}
	}
	rows("Volumes that are lost:", len(l.Volumes), "CLAIM\tSIZE\tMODE\tPOOL\tPV\tPHASE\tPOLICY\tPODS", func(i int) []string {
		v := l.Volumes[i]
		return []string{orNone(v.Claim), bytes(v.Bytes), orNone(v.Mode), orNone(v.Pool), orNone(v.PersistentVolume), orNone(v.Phase), orNone(v.ReclaimPolicy), orNone(strings.Join(v.Pods, ","))}
	})
	rows("Snapshots that are lost:", len(l.Snapshots), "NAME\tSIZE\tVOLUME", func(i int) []string {
		return []string{l.Snapshots[i].Name, bytes(l.Snapshots[i].Bytes), l.Snapshots[i].Volume}
	})
	rows("Pools:", len(l.Pools), "NAME\tTYPE\tCAPACITY", func(i int) []string {
		return []string{l.Pools[i].Name, orNone(l.Pools[i].Type), bytes(l.Pools[i].Bytes)}
	})
	rows("Disks:", len(l.Disks), "NAME\tPATH\tSIZE\tSERIAL\tOWNER\tBECOMES", func(i int) []string {
		d := l.Disks[i]
		return []string{d.Name, orNone(d.Path), bytes(d.Bytes), orNone(d.Serial), orNone(d.Owner), becomes(d.Kept)}
	})
	rows("Kept metadata of volume groups:", len(l.Metadata), "CONFIGMAP\tBECOMES", func(i int) []string {
		return []string{l.Metadata[i].Name, becomes(l.Metadata[i].Kept)}
	})
	if err := w.Flush(); err != nil {
		return err
	}
	if l.nothing() {
		fmt.Fprintln(out, "\nThere is nothing of it to forget.")
	} else {
		fmt.Fprintf(out, "\n%d objects are to be removed. Nothing on the disks is touched.\n", len(l.removals))
	}
	if len(l.Next) > 0 {
		fmt.Fprintln(out, "\nClaims and PersistentVolumes are left to you. To give them up:")
		for _, command := range l.Next {
			fmt.Fprintln(out, "  "+command)
		}
	}
	if len(l.Refusals) > 0 {
		fmt.Fprintln(out, "\nIt is not forgotten:")
		for _, refusal := range l.Refusals {
			fmt.Fprintln(out, "  "+refusal)
		}
	}
	return nil
}

func becomes(kept string) string {
	if kept == "" {
		return "removed"
	}
	return "kept: " + kept
}
