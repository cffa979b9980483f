// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

// FirstRetry is the shortest time after which the library tries anything again.
const FirstRetry = time.Second

// Provisioner is what sig-storage-lib calls for claims and released volumes of
// Berth's classes.
type Provisioner struct {
	volumes *Volumes
	live    client.Reader
	pvs     PersistentVolumes
	log     *slog.Logger
	now     func() time.Time

	mu sync.Mutex
	// handed are the volumes whose PersistentVolume was given to the library and
	// is not seen yet. It saves them in the background and cannot be told
	// otherwise, so they must not be replaced.
	handed map[string]struct{}
	// driven are the claims that the library will ask for again, even when they are
	// deleted meanwhile.
	driven map[types.UID]struct{}
	// deleted says when the volume of a PersistentVolume was deleted.
	deleted map[types.UID]time.Time
}

// PersistentVolumes is what is seen of the cluster's PersistentVolumes.
type PersistentVolumes interface {
	// Exists reports whether one of that name is seen.
	Exists(name string) bool
	// WithHandle returns the names of those of Berth with that volume handle.
	WithHandle(handle string) []string
}

var (
	_ controller.Provisioner      = (*Provisioner)(nil)
	_ controller.BlockProvisioner = (*Provisioner)(nil)
	_ controller.DeletionGuard    = (*Provisioner)(nil)
)

// NewProvisioner returns a provisioner over the service. live reads past every
// cache.
func NewProvisioner(volumes *Volumes, live client.Reader, pvs PersistentVolumes, log *slog.Logger) *Provisioner {
	return &Provisioner{
		volumes: volumes, live: live, pvs: pvs, log: log, now: time.Now,
		handed: map[string]struct{}{}, driven: map[types.UID]struct{}{}, deleted: map[types.UID]time.Time{},
	}
}

// SupportsBlock says that claims of volumeMode Block are served.
func (p *Provisioner) SupportsBlock(context.Context) bool { return true }

// Provision makes the volume of a claim on the node the scheduler chose, and
// blocks until it stands or the outcome must be left open. The state it returns
// tells the library how to go on:
//
//   - Finished, with a Refusal: the class or the claim must change.
//   - Reschedule: this node will not make it and nothing is left there; the
//     scheduler chooses again.
//   - InBackground: the outcome is open; Provision is called again, also when the
//     claim was deleted meanwhile.
func (p *Provisioner) Provision(ctx context.Context, options controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	asked := p.drive(options.PVC.UID, true)
	pv, state, err := p.provision(ctx, options)
	if err != nil && asked {
		state, err = p.endIfUnwanted(ctx, options, state, err)
	}
	p.drive(options.PVC.UID, state == controller.ProvisioningInBackground)
	return pv, state, err
}

// Driven reports whether Provision is at work for the claim, or will be called
// again for it whatever becomes of it.
func (p *Provisioner) Driven(claim types.UID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, driven := p.driven[claim]
	_, handed := p.handed[VolumeName(claim)]
	return driven || handed
}

// drive notes whether Provision will be called again for a claim, and returns whether it was to.
func (p *Provisioner) drive(claim types.UID, on bool) (was bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, was = p.driven[claim]
	if on {
		p.driven[claim] = struct{}{}
	} else {
		delete(p.driven, claim)
	}
	return was
}

// endIfUnwanted looks after what an earlier call has asked a node for, when a later one fails.
// The library forgets a claim with the first answer that leaves nothing open, and then asks for
// it as long as it is there, but not when it was deleted. So what is still being made stays in
// its memory; and when the claim is gone, it is taken back: the class, the limits or the source
// may have gone with the claim, and no later call would end it.
func (p *Provisioner) endIfUnwanted(ctx context.Context, options controller.ProvisionOptions, state controller.ProvisioningState, cause error) (controller.ProvisioningState, error) {
	name, uid := options.PVName, options.PVC.UID
	open := func(err error) (controller.ProvisioningState, error) {
		return controller.ProvisioningInBackground, &Pending{Volume: name, What: cause.Error(), Cause: err}
	}
	claim := &corev1.PersistentVolumeClaim{}
	err := p.live.Get(ctx, client.ObjectKeyFromObject(options.PVC), claim)
	switch {
	case err == nil && claim.UID == uid:
		// After a refusal the library forgets it whatever the state (isInfeasibleError).
		_, refused := errors.AsType[*Refusal](cause)
		if state == controller.ProvisioningFinished && !refused && p.volumes.Tracker().Get(name) != nil {
			state = controller.ProvisioningInBackground
		}
		return state, cause
	case err != nil && !apierrors.IsNotFound(err):
		return open(err)
	case p.wasHanded(name):
		return state, cause
	}
	lv, err := p.volumes.Find(ctx, name)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return controller.ProvisioningFinished, cause
	case err != nil:
		return open(err)
	case lv.Spec.ClaimRef == nil || lv.Spec.ClaimRef.UID != uid:
		return state, cause // somebody else's
	}
	switch err := p.live.Get(ctx, types.NamespacedName{Name: name}, &corev1.PersistentVolume{}); {
	case err == nil:
		return state, cause // it ends with that
	case !apierrors.IsNotFound(err):
		return open(err)
	}
	if !p.volumes.MayTakeBack(lv) {
		return state, cause // Orphans looks after it
	}
	p.log.Info("taking back a volume whose claim was deleted before it was made", "localVolume", name, "node", lv.Spec.NodeName)
	if err := p.volumes.Delete(ctx, name); err != nil {
		return open(err)
	}
	return controller.ProvisioningFinished, cause
}

func (p *Provisioner) provision(ctx context.Context, options controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	claim, class := options.PVC, options.StorageClass
	if source, name := SourceOf(claim); source == SourceOther {
		// The type is compared, so it must not be wrapped.
		return nil, controller.ProvisioningFinished, &controller.IgnoredError{Reason: "a volume populator fills the claim from " + name}
	}
	params, err := ParseParameters(class.Parameters)
	if err != nil {
		return nil, controller.ProvisioningFinished, refuse("StorageClass %q: %v", class.Name, err)
	}
	if err := CheckClaim(claim, params); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	secrets, err := SecretsOf(class.Parameters, params.Encryption, options.PVName, claim)
	if err != nil {
		return nil, controller.ProvisioningFinished, refuse("StorageClass %q: %v", class.Name, err)
	}
	limits, err := p.limitsOf(ctx, claim, params.Mode)
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	copied, err := p.originOf(ctx, options.PVName, claim)
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	node := ""
	if copied == nil {
		if node, err = nodeFor(options.SelectedNodeName, class); err != nil {
			return nil, controller.ProvisioningFinished, err
		}
	}
	request, err := requestFor(options.PVName, node, claim, class, params)
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	request.Spec.Limits = limits
	request.GiveUp = options.SelectedNodeName != "" && copied == nil
	if copied != nil {
		if err := copied.Fill(&request); err != nil {
			return nil, controller.ProvisioningFinished, err
		}
	}

	lv, err := p.volumes.Ensure(ctx, request)
	var other *conflict
	if errors.As(err, &other) && !other.foreign {
		lv, err = p.settleConflict(ctx, other, request)
	}
	if err != nil {
		// For a copy there is no other node to try.
		return nil, stateAfter(err, options.SelectedNodeName != "" && copied == nil), describe(err, class, params)
	}
	p.hand(options.PVName)
	return persistentVolume(options.PVName, claim, class, lv, secrets), controller.ProvisioningFinished, nil
}

// nodeFor is the node the scheduler chose. Without one the class would have to
// choose, which it can only where its allowedTopologies leave exactly one.
func nodeFor(selected string, class *storagev1.StorageClass) (string, error) {
	if selected != "" {
		return selected, nil
	}
	if len(class.AllowedTopologies) == 1 {
		expressions := class.AllowedTopologies[0].MatchLabelExpressions
		if len(expressions) == 1 && expressions[0].Key == berth.TopologyKeyNode && len(expressions[0].Values) == 1 {
			return expressions[0].Values[0], nil
		}
	}
	return "", refuse("StorageClass %q binds immediately, so nobody knows which node the pod will be on; make the class anew with volumeBindingMode: WaitForFirstConsumer (or with allowedTopologies that name exactly one node by %s)",
		class.Name, berth.TopologyKeyNode)
}

func requestFor(name, node string, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, params Parameters) (Request, error) {
	directory, err := params.PathTemplate.Fill(name, claim)
	if err != nil {
		return Request{}, err
	}
	spec := params.Spec(node, SizeBytes(claim), VolumeModeOf(claim))
	spec.ClaimRef = &berth.ClaimReference{Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID}
	spec.Directory = directory
	return Request{Name: name, Spec: spec, Pools: params.Pools, Labels: Labels(spec), Annotations: map[string]string{annotationClass: class.Name}}, nil
}

// Spec of a volume of this class on that node. It names no pool where there are several to
// choose from: see Request.
func (p Parameters) Spec(node string, sizeBytes int64, mode berth.VolumeMode) berth.LocalVolumeSpec {
	spec := berth.LocalVolumeSpec{
		NodeName:       node,
		Mode:           p.Mode,
		Pool:           p.pool(),
		SizeBytes:      sizeBytes,
		VolumeMode:     mode,
		FSType:         p.FSType,
		MkfsOptions:    p.MkfsOptions,
		Wipe:           p.Wipe,
		Encryption:     p.Encryption,
		RequireQuota:   p.RequireQuota,
		DeviceSelector: p.DeviceSelector,
	}
	if p.RetainFor > 0 {
		spec.RetainFor = &metav1.Duration{Duration: p.RetainFor}
	}
	if mode == berth.VolumeBlock {
		spec.FSType, spec.MkfsOptions = "", nil
	}
	return spec
}

// settleConflict deals with a volume that was made for this claim under other
// conditions: on another node, before the scheduler changed its mind, or by a
// class of the same name that was made anew. It is taken back and made again, if it is certain
// that it was never mounted: that no PersistentVolume names it may be because etcd was restored
// to a moment before there was one.
func (p *Provisioner) settleConflict(ctx context.Context, other *conflict, request Request) (*berth.LocalVolume, error) {
	name := request.Name
	if p.wasHanded(name) {
		// Its PersistentVolume is on its way; the claim gets that one.
		request.Spec = other.existing.Spec
		return p.volumes.Ensure(ctx, request)
	}
	err := p.live.Get(ctx, types.NamespacedName{Name: name}, &corev1.PersistentVolume{})
	switch {
	case err == nil:
		return nil, fmt.Errorf("%w; PersistentVolume %q stands for it, so it is left alone", other, name)
	case !apierrors.IsNotFound(err):
		return nil, &Pending{Volume: name, What: other.Error(), Cause: err}
	}
	if !p.volumes.MayTakeBack(other.existing) {
		return nil, fmt.Errorf("%w; it may have been used, as where etcd was restored to a moment before it had a PersistentVolume, and is left alone. To use it, ask for it as it was made: %s. If nothing on it is needed: kubectl annotate localvolume %s %s=true, and it is deleted with all that is on it and made anew",
			other, asItWasMade(other, request), name, annotationAllowDelete)
	}
	p.log.Info("taking back a volume that was made under other conditions", "localVolume", name, "difference", other.how)
	if err := p.volumes.Delete(ctx, name); err != nil {
		return nil, err
	}
	return p.volumes.Ensure(ctx, request)
}

// asItWasMade says how a claim comes to ask for the volume that there is. What else can differ is of the
// classes: nobody can change the rest of a claim.
func asItWasMade(other *conflict, request Request) string {
	have, want, claim := other.existing.Spec, request.Spec, request.Spec.ClaimRef
	switch {
	case have.NodeName != want.NodeName:
		return fmt.Sprintf("kubectl -n %s annotate pvc %s %s=%s --overwrite", claim.Namespace, claim.Name, annotationSelectedNode, have.NodeName)
	case !SameLimits(have.Limits, want.Limits):
		return fmt.Sprintf("delete the VolumeAttributesClass of claim %s/%s and create it under the same name with the limits that the volume has (kubectl get localvolume %s -o jsonpath={.spec.limits})", claim.Namespace, claim.Name, request.Name)
	}
	return fmt.Sprintf("delete the StorageClass of claim %s/%s, which keeps its volumes, and create it under the same name with the parameters of then (kubectl get localvolume %s -o yaml), until the claim is bound", claim.Namespace, claim.Name, request.Name)
}

// stateAfter maps an error to what the library should do next.
func stateAfter(err error, selected bool) controller.ProvisioningState {
	if _, ok := errors.AsType[*Pending](err); ok {
		return controller.ProvisioningInBackground
	}
	failure, ok := asFailure(err)
	switch {
	case ok && failure.Reason == berth.ReasonInvalid:
		return controller.ProvisioningFinished
	case ok && selected:
		return controller.ProvisioningReschedule
	case ok, errors.Is(err, ErrConflict), errors.Is(err, volume.ErrInvalid), IsRefusedByAPI(err):
		return controller.ProvisioningFinished
	}
	return controller.ProvisioningInBackground
}

// IsRefusedByAPI reports whether the API server refused a request, so that it had no effect.
func IsRefusedByAPI(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && definite(err)
}

// describe adds what a user can do about a node's answer.
func describe(err error, class *storagev1.StorageClass, params Parameters) error {
	if _, ok := errors.AsType[*Pending](err); ok {
		return err
	}
	failure, ok := asFailure(err)
	if !ok {
		return err
	}
	switch failure.Reason {
	case berth.ReasonNoSpace:
		return fmt.Errorf("%w; another node is tried if one fits (kubectl get %s)", err, whereSpaceIs(params.Mode))
	case berth.ReasonPoolNotFound:
		return fmt.Errorf("%w; StorageClass %q asks for pool %q: see kubectl get poolset %s, and kubectl get pools for the nodes that have one",
			err, class.Name, strings.Join(params.Pools, ","), strings.Join(params.Pools, " "))
	case berth.ReasonToolMissing:
		return fmt.Errorf("%w; install it on the host", err)
	case berth.ReasonNotEnforceable:
		return fmt.Errorf("%w; another node is tried if one fits", err)
	case berth.ReasonInvalid:
		return refuse("%v", err)
	}
	return err
}

func whereSpaceIs(mode berth.Mode) string {
	if mode == berth.ModeDevice {
		return "blockdevices -o wide"
	}
	return "pools"
}

// Delete deletes the volume of a released PersistentVolume and returns when its
// agent has proven that nothing is left. The library then deletes the object.
func (p *Provisioner) Delete(ctx context.Context, pv *corev1.PersistentVolume) error {
	source := pv.Spec.CSI
	if source == nil || source.Driver != berth.DriverName {
		return &controller.IgnoredError{Reason: "not a volume of " + berth.DriverName}
	}
	for _, name := range p.pvs.WithHandle(source.VolumeHandle) {
		if name != pv.Name {
			return fmt.Errorf("LocalVolume %q is not deleted: PersistentVolume %q names it too; delete or retain one of the two objects first",
				source.VolumeHandle, name)
		}
	}
	if err := p.volumes.Delete(ctx, source.VolumeHandle); err != nil {
		return err
	}
	p.forget(pv.Name, pv.UID)
	return nil
}

// ShouldDelete holds the library back for as long as its first retry takes after
// a volume was deleted. The events of its own DELETE and PATCH of the
// PersistentVolume would otherwise start a second round over an object that is
// going already. When one of those two requests failed, the retry comes later
// than this and is let through.
//
// The library asks it of each PersistentVolume of Berth that it sees: that one is saved.
func (p *Provisioner) ShouldDelete(_ context.Context, pv *corev1.PersistentVolume) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.handed, pv.Name)
	at, ok := p.deleted[pv.UID]
	return !ok || p.now().Sub(at) >= FirstRetry
}

// handedLimit is when the volumes that were handed to the library are looked
// through for those whose PersistentVolume is seen by now.
const handedLimit = 1024

func (p *Provisioner) hand(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handed[name] = struct{}{}
	if len(p.handed) < handedLimit {
		return
	}
	for name := range p.handed {
		if p.pvs.Exists(name) {
			delete(p.handed, name)
		}
	}
}

func (p *Provisioner) wasHanded(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.handed[name]
	return ok
}

func (p *Provisioner) forget(name string, uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.handed, name)
	now := p.now()
	for old, at := range p.deleted {
		if now.Sub(at) >= FirstRetry {
			delete(p.deleted, old)
		}
	}
	p.deleted[uid] = now
}
