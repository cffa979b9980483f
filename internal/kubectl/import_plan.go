// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

const (
	provisionedBy = "pv.kubernetes.io/provisioned-by"
	// selectedNode is the name of the node, on PersistentVolumes of local-path-provisioner.
	selectedNode = "local.path.provisioner/selected-node"
	// The old PersistentVolume says how to go on and how to go back: importClaim is its claim
	// as it was, to be created anew, importPolicy its reclaim policy.
	importClaim  = "berth.dev/import-claim"
	importPolicy = "berth.dev/import-reclaim-policy"
)

// The states of a move.
const (
	stateReady   = "Ready"   // it can begin
	stateBegun   = "Begun"   // it was begun and goes on
	stateMoved   = "Moved"   // it is done
	stateRefused = "Refused" // it cannot begin, or not go on
)

// move is one volume that is to be moved, or was.
type move struct {
	PersistentVolume string `json:"persistentVolume"`
	Claim            string `json:"claim,omitempty"`
	Node             string `json:"node,omitempty"`
	Directory        string `json:"directory,omitempty"`
	Bytes            int64  `json:"sizeBytes"`
	// Pool is the PoolSet's name.
	Pool         string `json:"pool,omitempty"`
	StorageClass string `json:"storageClass,omitempty"`
	// Volume is the name of the LocalVolume and of the new PersistentVolume.
	Volume  string `json:"volume"`
	State   string `json:"state"`
	Message string `json:"message,omitempty"`
	// Refusals are why it cannot be moved.
	Refusals []string `json:"refusals,omitempty"`
	// Steps are what is to be done, and Back is how to go back when something was.
	Steps []string `json:"steps,omitempty"`
	Back  []string `json:"back,omitempty"`

	pv *corev1.PersistentVolume
	// claim as it was, without what the API server has filled in. Its UID is that of the claim.
	claim *corev1.PersistentVolumeClaim
	// policy that the old PersistentVolume had.
	policy corev1.PersistentVolumeReclaimPolicy
	// root of the pool, and the UID of the LocalVolume, as soon as they are known.
	root, uid string
}

func (m *move) refuse(format string, args ...any) {
	m.State = stateRefused
	m.Refusals = append(m.Refusals, fmt.Sprintf(format, args...))
}

// world is what moves are planned by.
type world struct {
	pvs     corev1.PersistentVolumeList
	claims  corev1.PersistentVolumeClaimList
	pods    corev1.PodList
	nodes   corev1.NodeList
	pools   berth.PoolList
	sets    berth.PoolSetList
	volumes berth.LocalVolumeList
	classes storagev1.StorageClassList
	agents  map[string]*corev1.Pod
	users   map[string][]string
}

func (p *plugin) lookAtWorld(ctx context.Context) (*world, error) {
	w := &world{}
	// Claims before PersistentVolumes: what was made in between is seen as it is now.
	for _, look := range []struct {
		list client.ObjectList
		what string
	}{
		{&w.claims, "claims"},
		{&w.pvs, "PersistentVolumes"},
		{&w.pods, "pods"},
		{&w.nodes, "nodes"},
		{&w.pools, "Pools"},
		{&w.sets, "PoolSets"},
		{&w.volumes, "LocalVolumes"},
		{&w.classes, "StorageClasses"},
	} {
		if err := p.list(ctx, look.list, look.what); err != nil {
			return nil, err
		}
	}
	var err error
	w.agents, err = p.agents(ctx)
	w.users = podsByClaim(&w.pods)
	return w, err
}

// planMoves plans the moves of the volumes that are named, by a claim or as pv/NAME; of all
// when none is.
func (p *plugin) planMoves(ctx context.Context, named []string) ([]*move, error) {
	w, err := p.lookAtWorld(ctx)
	if err != nil {
		return nil, err
	}
	moves := []*move{}
	for i := range w.pvs.Items {
		pv := &w.pvs.Items[i]
		if len(named) > 0 && !p.isNamed(pv, named[0]) || len(named) == 0 && pv.Annotations[provisionedBy] != p.o.Provisioner {
			continue
		}
		m := p.planMove(w, pv)
		moves = append(moves, m)
	}
	if len(moves) == 0 && len(named) > 0 {
		return nil, fmt.Errorf("%w: no PersistentVolume is that of %q: name a claim that is bound, or pv/NAME", errUsage, named[0])
	}
	slices.SortFunc(moves, func(a, b *move) int {
		return cmp.Or(cmp.Compare(a.Claim, b.Claim), cmp.Compare(a.PersistentVolume, b.PersistentVolume))
	})
	return moves, nil
}

// isNamed reports whether a PersistentVolume is the one that the user means: also after its
// claim has gone, or belongs to another one.
func (p *plugin) isNamed(pv *corev1.PersistentVolume, name string) bool {
	if kind, rest, ok := strings.Cut(name, "/"); ok && kind == "pv" {
		return pv.Name == rest
	}
	namespace, claim := p.o.Namespace, strings.TrimPrefix(name, "pvc/")
	if before, after, ok := strings.Cut(claim, "/"); ok {
		namespace, claim = before, after
	}
	ref := pv.Spec.ClaimRef
	return ref != nil && ref.Namespace == namespace && ref.Name == claim && pv.Annotations[provisionedBy] == p.o.Provisioner
}

// planMove says what is to be done with one volume.
func (p *plugin) planMove(w *world, pv *corev1.PersistentVolume) *move {
	m := &move{
		PersistentVolume: pv.Name, Volume: pv.Name + "-berth", Bytes: pv.Spec.Capacity.Storage().Value(), State: stateReady, pv: pv,
		policy: pv.Spec.PersistentVolumeReclaimPolicy,
	}
	if pv.Annotations[provisionedBy] != p.o.Provisioner {
		m.refuse("it is of %s and not of %s (--provisioner)", orNone(pv.Annotations[provisionedBy]), p.o.Provisioner)
		return m
	}
	m.findDirectory(w)
	m.findNode(w)
	m.findClaim(w)
	if len(m.Refusals) > 0 {
		return m
	}
	var made *berth.LocalVolume
	for i := range w.volumes.Items {
		if lv := &w.volumes.Items[i]; lv.Name == m.Volume && m.isOurs(lv) {
			made = lv
			m.know(lv)
		}
	}
	if m.isMoved(w, made) {
		m.State, m.Message = stateMoved, fmt.Sprintf("claim %s has it", m.Claim)
		m.Back = m.back()
		return m
	}
	m.findPool(w, p.o.Pool)
	m.findClass(w, p.o.StorageClass)
	m.lookForOthers(w)
	// Pods that wait for a claim that is gone, or for the new one, cannot have the directory.
	old := w.claimOf(pv.Spec.ClaimRef)
	if users := w.users[m.Claim]; len(users) > 0 && old != nil && old.UID == m.claim.UID {
		m.refuse("pods use claim %s: %s; scale what has made them to 0, so that they do not come back", m.Claim, strings.Join(users, ", "))
	}
	m.Steps = m.steps()
	if m.State == stateBegun || m.wasBegun() {
		m.Back = m.back()
	}
	return m
}

func (m *move) wasBegun() bool { return m.pv.Annotations[importClaim] != "" }

// findDirectory finds out which directory it is.
func (m *move) findDirectory(w *world) {
	m.Directory = directoryOf(m.pv)
	switch {
	case m.Directory == "":
		m.refuse("it has neither hostPath nor local: it is no directory of a node")
	case !path.IsAbs(m.Directory) || path.Clean(m.Directory) != m.Directory || m.Directory == "/":
		m.refuse("its path %q is not absolute, or not in its shortest form", m.Directory)
	}
	if m.pv.Spec.VolumeMode != nil && *m.pv.Spec.VolumeMode == corev1.PersistentVolumeBlock {
		m.refuse("it is a block volume, and a directory cannot be one")
	}
	if m.pv.DeletionTimestamp != nil {
		m.refuse("its deletion was asked for")
	}
	for _, mode := range m.pv.Spec.AccessModes {
		if mode == corev1.ReadWriteMany || mode == corev1.ReadOnlyMany {
			m.refuse("it has the access mode %s, and a volume of Berth is used on one node", mode)
		}
	}
	for i := range w.pvs.Items {
		other := &w.pvs.Items[i]
		if dir := directoryOf(other); other.Name != m.pv.Name && dir != "" && m.Directory != "" && overlaps(dir, m.Directory) && sameNodes(other, m.pv) {
			m.refuse("PersistentVolume %s has the same directory, one in it or one above it: %s", other.Name, dir)
		}
	}
}

func directoryOf(pv *corev1.PersistentVolume) string {
	switch {
	case pv.Spec.HostPath != nil:
		return path.Clean(pv.Spec.HostPath.Path)
	case pv.Spec.Local != nil:
		return path.Clean(pv.Spec.Local.Path)
	}
	return ""
}

func overlaps(p, q string) bool { return isBelow(p, q) || isBelow(q, p) }

// isBelow reports whether a path is a directory, or lies in it.
func isBelow(dir, p string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// sameNodes reports whether two PersistentVolumes may be on one node.
func sameNodes(a, b *corev1.PersistentVolume) bool {
	left, right := hostnameOf(a), hostnameOf(b)
	return left == "" || right == "" || left == right
}

// hostnameOf is what the affinity of a PersistentVolume says the node is labelled; empty when
// it says anything else than one name.
func hostnameOf(pv *corev1.PersistentVolume) string {
	_, value := affinityOf(pv)
	return value
}

func affinityOf(pv *corev1.PersistentVolume) (key, value string) {
	if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil || len(pv.Spec.NodeAffinity.Required.NodeSelectorTerms) != 1 {
		return "", ""
	}
	term := pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0]
	if len(term.MatchExpressions) != 1 || len(term.MatchFields) > 0 {
		return "", ""
	}
	e := term.MatchExpressions[0]
	if e.Operator != corev1.NodeSelectorOpIn || len(e.Values) != 1 {
		return "", ""
	}
	return e.Key, e.Values[0]
}

// findNode finds the one node that has the directory.
func (m *move) findNode(w *world) {
	key, value := affinityOf(m.pv)
	if value == "" {
		m.refuse("its node affinity names no single node: %s", errShared.Error())
		return
	}
	var nodes []*corev1.Node
	for i := range w.nodes.Items {
		if w.nodes.Items[i].Labels[key] == value {
			nodes = append(nodes, &w.nodes.Items[i])
		}
	}
	if len(nodes) != 1 {
		m.refuse("%d nodes have the label %s=%s of its affinity, and it must be one", len(nodes), key, value)
		return
	}
	m.Node = nodes[0].Name
	if said := m.pv.Annotations[selectedNode]; said != "" && said != m.Node {
		m.refuse("its annotation %s says node %s, and its affinity leads to node %s", selectedNode, said, m.Node)
	}
	if agent := w.agents[m.Node]; agent == nil {
		m.refuse("node %s has no agent of Berth", m.Node)
	} else if ok, why := podReady(agent); !ok {
		m.refuse("the agent of node %s, pod %s, is not ready: %s", m.Node, agent.Name, why)
	}
}

// findClaim finds the claim as it is, or as it was when the move was begun.
func (m *move) findClaim(w *world) {
	ref := m.pv.Spec.ClaimRef
	if ref == nil {
		m.refuse("it has no claim, so that there is nothing to move it for; to keep its data, make a LocalVolume with spec.adopt by hand")
		return
	}
	m.Claim = ref.Namespace + "/" + ref.Name
	if text := m.pv.Annotations[importClaim]; text != "" {
		m.claim = &corev1.PersistentVolumeClaim{}
		if err := json.Unmarshal([]byte(text), m.claim); err != nil || m.claim.Namespace != ref.Namespace || m.claim.Name != ref.Name {
			m.refuse("its annotation %s is not the claim %s: %v", importClaim, m.Claim, err)
			return
		}
		m.State = stateBegun
		m.claim.UID = ref.UID
		m.policy = cmp.Or(corev1.PersistentVolumeReclaimPolicy(m.pv.Annotations[importPolicy]), m.policy)
		return
	}
	claim := w.claimOf(ref)
	switch {
	case claim == nil || claim.UID != ref.UID || claim.Spec.VolumeName != m.pv.Name:
		m.refuse("its claim %s is gone or has another volume (it is %s)", m.Claim, orNone(string(m.pv.Status.Phase)))
	case claim.DeletionTimestamp != nil:
		m.refuse("the deletion of its claim %s was asked for", m.Claim)
	case claim.Status.Phase != corev1.ClaimBound:
		m.refuse("its claim %s is %s and not Bound", m.Claim, orNone(string(claim.Status.Phase)))
	default:
		m.claim = asNew(claim)
		m.claim.UID = claim.UID
	}
}

func (w *world) claimOf(ref *corev1.ObjectReference) *corev1.PersistentVolumeClaim {
	for i := range w.claims.Items {
		if c := &w.claims.Items[i]; c.Namespace == ref.Namespace && c.Name == ref.Name {
			return c
		}
	}
	return nil
}

// isMoved reports whether the claim has the new PersistentVolume already, and its LocalVolume
// knows that.
func (m *move) isMoved(w *world, made *berth.LocalVolume) bool {
	claim := w.claimOf(m.pv.Spec.ClaimRef)
	return claim != nil && claim.Spec.VolumeName == m.Volume && claim.Status.Phase == corev1.ClaimBound &&
		(made == nil || made.Spec.ClaimRef != nil && made.Spec.ClaimRef.UID == claim.UID)
}

// findPool finds the pool that takes the directory: one that is named, or that whose root lies
// nearest.
func (m *move) findPool(w *world, named string) {
	roots := map[string]string{}
	for i := range w.sets.Items {
		if set := &w.sets.Items[i]; set.Spec.Hostpath != nil {
			roots[set.Name] = set.Spec.Hostpath.Path
		}
	}
	var best *berth.Pool
	for i := range w.pools.Items {
		pool := &w.pools.Items[i]
		root := roots[pool.Spec.PoolSetName]
		switch {
		case pool.Spec.NodeName != m.Node || pool.Spec.Kind != berth.PoolHostpath || root == "" || !takesFrom(root, m.Directory):
		case named != "" && pool.Spec.PoolSetName != named:
		case best == nil || len(root) > len(roots[best.Spec.PoolSetName]):
			best = pool
		}
	}
	if best == nil {
		m.refuse("node %s has no pool%s that takes directories from %s: apply what kubectl berth import local-path prints, or make a PoolSet of kind hostpath whose path lies beside it", m.Node, ofName(named), path.Dir(m.Directory))
		return
	}
	m.Pool, m.root = best.Spec.PoolSetName, cmp.Or(m.root, roots[best.Spec.PoolSetName])
	if c := meta.FindStatusCondition(best.Status.Conditions, berth.PoolReady); c == nil || c.Status != "True" {
		m.refuse("pool %s is not ready: %s", best.Name, orNone(valueOf(c).Message))
	}
}

func ofName(name string) string {
	if name == "" {
		return ""
	}
	return " " + name
}

// takesFrom reports whether a pool takes a directory, as far as its path tells: it must lie
// beside the root, or in it.
func takesFrom(root, dir string) bool {
	from := path.Dir(root)
	if from == "/" {
		from = root
	}
	return isBelow(from, dir) && dir != from && !isBelow(dir, root)
}

// findClass finds the StorageClass that the claim gets.
func (m *move) findClass(w *world, named string) {
	m.StorageClass = named
	if named == "" {
		m.StorageClass = className(cmp.Or(m.pv.Spec.StorageClassName, localPath))
	}
	i := slices.IndexFunc(w.classes.Items, func(c storagev1.StorageClass) bool { return c.Name == m.StorageClass })
	switch {
	case i < 0:
		m.refuse("there is no StorageClass %s: apply what kubectl berth import local-path prints, or name another one by --storage-class", m.StorageClass)
	case w.classes.Items[i].Provisioner != berth.DriverName:
		m.refuse("StorageClass %s is of %s and not of Berth; name another one by --storage-class", m.StorageClass, w.classes.Items[i].Provisioner)
	}
}

// lookForOthers refuses when somebody else has the names that are needed.
func (m *move) lookForOthers(w *world) {
	for i := range w.volumes.Items {
		lv := &w.volumes.Items[i]
		if lv.Name == m.Volume && !m.isOurs(lv) {
			m.refuse("there is a LocalVolume %s that is not of this directory", lv.Name)
		}
	}
	for i := range w.pvs.Items {
		pv := &w.pvs.Items[i]
		if pv.Name == m.Volume && (pv.Spec.CSI == nil || pv.Spec.CSI.Driver != berth.DriverName || pv.Spec.CSI.VolumeHandle != m.Volume) {
			m.refuse("there is a PersistentVolume %s that is not of the volume of that name", pv.Name)
		}
	}
	if claim := w.claimOf(m.pv.Spec.ClaimRef); m.State == stateBegun && claim != nil && claim.UID != m.claim.UID && claim.Spec.VolumeName != m.Volume {
		m.refuse("somebody has made claim %s anew meanwhile: if nothing is in it, delete it and run this again", m.Claim)
	}
}

func (m *move) isOurs(lv *berth.LocalVolume) bool {
	return lv.Spec.NodeName == m.Node && lv.Spec.Adopt != nil && lv.Spec.Adopt.Directory == m.Directory
}

// steps are what is to be done, in words.
func (m *move) steps() []string {
	return []string{
		fmt.Sprintf("Set the reclaim policy of PersistentVolume %s to Retain, and write its claim into its annotation %s.", m.PersistentVolume, importClaim),
		fmt.Sprintf("Delete claim %s, and wait until it is gone: no pod can use the directory from then on.", m.Claim),
		fmt.Sprintf("Make LocalVolume %s: node %s moves %s into pool %s (%s), without copying.", m.Volume, m.Node, m.Directory, m.Pool, m.root),
		fmt.Sprintf("Make PersistentVolume %s of it, with reclaim policy %s.", m.Volume, m.policy),
		fmt.Sprintf("Make claim %s anew, with StorageClass %s and that volume.", m.Claim, m.StorageClass),
	}
}

// back are the commands that undo a move, also one that is half done.
func (m *move) back() []string {
	namespace, name, _ := strings.Cut(m.Claim, "/")
	given := path.Join(cmp.Or(m.root, "ROOT"), "taken-back", cmp.Or(m.uid, "UID")+".*")
	return []string{
		fmt.Sprintf("kubectl delete pvc --namespace %s %s --ignore-not-found", namespace, name),
		fmt.Sprintf("kubectl annotate localvolume %s %s=true; kubectl delete localvolume %s --ignore-not-found", m.Volume, allowDelete, m.Volume),
		fmt.Sprintf("kubectl delete pv %s --ignore-not-found", m.Volume),
		fmt.Sprintf("test -e %s || mv -T %s %s   # on node %s", m.Directory, given, m.Directory, m.Node),
		fmt.Sprintf(`kubectl patch pv %s --type merge -p '{"spec":{"claimRef":{"uid":null,"resourceVersion":null}}}'`, m.PersistentVolume),
		fmt.Sprintf(`kubectl get pv %s -o jsonpath='{.metadata.annotations.berth\.dev/import-claim}' | kubectl create -f -`, m.PersistentVolume),
		fmt.Sprintf(`kubectl patch pv %s --type merge -p '{"metadata":{"annotations":{%q:null,%q:null}},"spec":{"persistentVolumeReclaimPolicy":%q}}'`, m.PersistentVolume, importClaim, importPolicy, m.policy),
	}
}
