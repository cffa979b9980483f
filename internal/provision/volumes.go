// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	// defaultWait bounds a wait whose context has no deadline.
	defaultWait = time.Minute
	// maxReserve of the time is kept back from a wait, to clean up behind it and
	// to tell the caller while the caller still listens.
	maxReserve = 10 * time.Second
	// silentWait is the patience with a node whose agent let the last wait run
	// out without a sign of life. Without it, one dead node would hold every
	// worker for its whole timeout.
	silentWait = 2 * time.Second
)

// Volumes creates, grows and deletes LocalVolumes and waits for the agents'
// answers. A wait is woken by the events of the Tracker's informer: it polls
// nothing, and in the good case each operation costs one request.
//
// It is safe for concurrent use; the caller never runs two operations on the same
// name at once.
type Volumes struct {
	writer  client.Writer
	live    client.Reader
	tracker *Tracker

	mu sync.Mutex
	// unused are the volumes that this process has made and given to nobody, by their names.
	unused map[string]types.UID
}

// NewVolumes returns the service. writer makes the changes; live reads from the
// API server, past every cache, and is asked only when something is not as
// expected; tracker is fed by an informer on LocalVolumes.
func NewVolumes(writer client.Writer, live client.Reader, tracker *Tracker) *Volumes {
	return &Volumes{writer: writer, live: live, tracker: tracker, unused: map[string]types.UID{}}
}

// Tracker returns what the service sees.
func (v *Volumes) Tracker() *Tracker { return v.tracker }

// Request asks for a LocalVolume.
type Request struct {
	// Name of the LocalVolume.
	Name string
	// Spec as it is to be. Where it names no pool, one of Pools is chosen when the object is
	// made.
	Spec berth.LocalVolumeSpec
	// Pools are those that the volume may be in, none in mode device.
	Pools []string
	// Labels and Annotations are set when the object is made.
	Labels, Annotations map[string]string
	// GiveUp takes an agent's "not now" (PoolNotReady, Failed) for an answer when
	// it still stands at the end of the wait, so that another node can be tried.
	// Without it the volume is left to the agent, and so is one that may have been used
	// (MayTakeBack).
	GiveUp bool
}

// Ensure makes the LocalVolume, or finds the one an earlier call made, and waits
// until its agent has answered. Repeated calls return the same volume.
//
// Errors: a *Failure is the node's final answer and promises that nothing is left
// there; ErrConflict means a volume of that name that is not the one asked for,
// which was not touched; a *Pending means that the outcome is open, so ask again.
// Any other error means that nothing was made.
func (v *Volumes) Ensure(ctx context.Context, req Request) (*berth.LocalVolume, error) {
	sub := v.tracker.Subscribe(req.Name)
	defer sub.Close()
	waitCtx, cancel := v.patience(ctx, req.Spec.NodeName)
	defer cancel()
	signs := v.tracker.lifeSigns(req.Spec.NodeName)
	var refusal error // of the first pool

	for {
		cur, err := v.post(waitCtx, req)
		if err != nil {
			return nil, err
		}
		how, foreign := difference(cur, req)
		if foreign {
			return nil, &conflict{existing: cur, how: how, foreign: true}
		}
		if cur.DeletionTimestamp != nil {
			// An earlier attempt is being cleaned up. What its node said still counts
			// if it was asked the same.
			if err := sub.UntilGone(waitCtx, cur.UID); err != nil {
				return nil, v.stillGoing(ctx, cur, signs, err)
			}
			if verdict := verdictOf(cur, req.GiveUp); verdict != nil && how == "" {
				return nil, verdict
			}
			continue
		}
		if how != "" {
			return nil, &conflict{existing: cur, how: how}
		}
		last, err := sub.Until(waitCtx, cur.UID, settled)
		switch {
		case errors.Is(err, errGone):
			continue // deleted by somebody under our hands
		case err != nil:
			if last == nil {
				last = cur
			}
			return nil, v.unanswered(ctx, sub, last, req, signs, err)
		case last.DeletionTimestamp != nil:
			continue // the same, and its agent is at it
		}
		if meta.IsStatusConditionTrue(last.Status.Conditions, berth.LocalVolumeReady) {
			return v.give(last)
		}
		err = v.discard(ctx, sub, last, verdictOf(last, false))
		if failure, ok := asFailure(err); !ok || failure.Reason == berth.ReasonInvalid {
			return nil, err
		}
		if refusal == nil {
			refusal = err
		}
		if req.Pools = v.otherPools(waitCtx, req, last.Spec.Pool); len(req.Pools) == 0 {
			return nil, refusal
		}
	}
}

// post returns the LocalVolume of that name: the one that is seen, or a new one,
// or, when the API server knows one that is not seen yet, that one.
func (v *Volumes) post(ctx context.Context, req Request) (*berth.LocalVolume, error) {
	for {
		if cur := v.tracker.Get(req.Name); cur != nil {
			return cur, nil
		}
		lv, err := v.object(ctx, req)
		if err != nil {
			return nil, err
		}
		err = v.writer.Create(ctx, lv)
		switch {
		case err == nil:
			v.noteUnused(lv)
			return lv, nil
		case apierrors.IsAlreadyExists(err):
			live := &berth.LocalVolume{}
			switch err := v.live.Get(ctx, types.NamespacedName{Name: req.Name}, live); {
			case err == nil:
				return live, nil
			case !apierrors.IsNotFound(err):
				return nil, &Pending{Volume: req.Name, What: "it exists already and could not be read", Cause: err}
			}
			if ctx.Err() != nil {
				return nil, &Pending{Volume: req.Name, What: "it came and went while it was read", Cause: ctx.Err()}
			}
		case definite(err):
			return nil, fmt.Errorf("create LocalVolume %q: %w", req.Name, err)
		default:
			return nil, &Pending{Volume: req.Name, What: "the API server did not say whether it was created", Cause: err}
		}
	}
}

// object is the LocalVolume of a request, in the pool that is best for it.
func (v *Volumes) object(ctx context.Context, req Request) (*berth.LocalVolume, error) {
	lv := &berth.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        req.Name,
			Labels:      req.Labels,
			Annotations: req.Annotations,
			Finalizers:  []string{berth.AgentFinalizer},
		},
		Spec: *req.Spec.DeepCopy(),
	}
	if lv.Spec.Pool != "" || len(req.Pools) == 0 {
		return lv, nil
	}
	pool, err := v.choosePool(ctx, req)
	if err != nil {
		return nil, err
	}
	lv.Spec.Pool = pool
	lv.Labels = maps.Clone(req.Labels)
	lv.Labels[labelPool] = pool
	return lv, nil
}

// definite reports whether the API server refused a request, so that it had no
// effect.
func definite(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsForbidden(err) || apierrors.IsBadRequest(err) ||
		apierrors.IsNotFound(err) || apierrors.IsUnauthorized(err) || apierrors.IsMethodNotSupported(err) ||
		apierrors.IsRequestEntityTooLargeError(err)
}

// difference says how an existing volume differs from the request; foreign is
// true when it was made for another claim.
func difference(cur *berth.LocalVolume, req Request) (how string, foreign bool) {
	have, want := cur.Spec, req.Spec
	if have.ClaimRef != nil || want.ClaimRef != nil {
		if have.ClaimRef == nil || want.ClaimRef == nil || have.ClaimRef.UID != want.ClaimRef.UID {
			return "it was made for another claim", true
		}
	}
	switch {
	case have.NodeName != want.NodeName:
		return fmt.Sprintf("it is on node %s, not %s", have.NodeName, want.NodeName), false
	case have.Mode != want.Mode:
		return fmt.Sprintf("its mode is %s, not %s", have.Mode, want.Mode), false
	case have.Pool != want.Pool && (want.Pool != "" || !slices.Contains(req.Pools, have.Pool)):
		return fmt.Sprintf("its pool is %q, not %q", have.Pool, cmp.Or(want.Pool, strings.Join(req.Pools, ","))), false
	case have.VolumeMode != want.VolumeMode:
		return fmt.Sprintf("its volume mode is %s, not %s", have.VolumeMode, want.VolumeMode), false
	case have.FSType != want.FSType:
		return fmt.Sprintf("its filesystem is %q, not %q", have.FSType, want.FSType), false
	case !slices.Equal(have.MkfsOptions, want.MkfsOptions):
		return fmt.Sprintf("its filesystem was made with %q, not %q", have.MkfsOptions, want.MkfsOptions), false
	case have.RequireQuota != want.RequireQuota:
		return fmt.Sprintf("its requireQuota is %t, not %t", have.RequireQuota, want.RequireQuota), false
	case have.Directory != want.Directory:
		return fmt.Sprintf("its directory is %q, not %q", have.Directory, want.Directory), false
	case RetentionOf(have) != RetentionOf(want):
		return fmt.Sprintf("its retainFor is %s, not %s", RetentionOf(have), RetentionOf(want)), false
	case have.Encryption != want.Encryption:
		return fmt.Sprintf("its encryption is %q, not %q", have.Encryption, want.Encryption), false
	case (have.Source == nil) != (want.Source == nil), have.Source != nil && *have.Source != *want.Source:
		return "it began as a copy of something else", false
	case !SameLimits(have.Limits, want.Limits):
		return "it has other limits", false
	case have.SizeBytes != want.SizeBytes:
		return fmt.Sprintf("it has %d bytes, not %d", have.SizeBytes, want.SizeBytes), false
	}
	return "", false
}

// RetentionOf is for how long what a volume holds is kept after it was deleted; 0 not at all.
func RetentionOf(spec berth.LocalVolumeSpec) time.Duration {
	if spec.RetainFor == nil {
		return 0
	}
	return spec.RetainFor.Duration
}

// settled reports whether the agent has given its final answer.
func settled(lv *berth.LocalVolume) bool {
	return meta.IsStatusConditionTrue(lv.Status.Conditions, berth.LocalVolumeReady) ||
		verdictOf(lv, false) != nil || lv.DeletionTimestamp != nil
}

// verdictOf returns why the node will not make the volume, or nil while it may.
//
// With giveUp the agent's "not now" counts too, as long as the volume never stood:
// the agent then takes back what it may have begun before it lets the object go.
func verdictOf(lv *berth.LocalVolume, giveUp bool) *Failure {
	ready := meta.FindStatusCondition(lv.Status.Conditions, berth.LocalVolumeReady)
	if ready == nil || ready.Status == metav1.ConditionTrue {
		return nil
	}
	failure := &Failure{Volume: lv.Name, Node: lv.Spec.NodeName, Reason: ready.Reason, Message: ready.Message}
	switch ready.Reason {
	case berth.ReasonNoSpace, berth.ReasonPoolNotFound, berth.ReasonToolMissing, berth.ReasonInvalid, berth.ReasonNotEnforceable:
		if ready.Status == metav1.ConditionFalse {
			return failure
		}
	case berth.ReasonPoolNotReady, berth.ReasonFailed:
		if giveUp && neverReady(lv) {
			return failure
		}
	}
	return nil
}

// give returns a volume that stands to whoever asked for it. One that is smaller than asked
// for is not given to anybody, whatever the agent says.
func (v *Volumes) give(lv *berth.LocalVolume) (*berth.LocalVolume, error) {
	if lv.Status.Capacity == nil || lv.Status.Capacity.Value() < lv.Spec.SizeBytes {
		return nil, &Pending{
			Volume: lv.Name, What: fmt.Sprintf("it is Ready and its status.capacity is less than the %d bytes asked for", lv.Spec.SizeBytes),
			Cause: volume.ErrBusy,
		}
	}
	v.forgetUnused(lv)
	return lv, nil
}

// noteUnused notes a volume that this process has made.
func (v *Volumes) noteUnused(lv *berth.LocalVolume) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.unused[lv.Name] = lv.UID
}

// forgetUnused notes that somebody was given a volume, or that it is gone.
func (v *Volumes) forgetUnused(lv *berth.LocalVolume) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.unused[lv.Name] == lv.UID {
		delete(v.unused, lv.Name)
	}
}

// MayTakeBack reports whether it is certain that nobody has used a volume: this process has
// made it and given it to nobody, or a person says so. That nothing leads to a volume, and that
// its status says nothing of it, is no proof: where etcd was restored, both may be older than
// what is on the disk.
func (v *Volumes) MayTakeBack(lv *berth.LocalVolume) bool {
	if lv.Annotations[annotationAllowDelete] == "true" {
		return true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	uid, unused := v.unused[lv.Name]
	return unused && uid == lv.UID
}

// discard takes back a volume that its node will not make, waits for the proof
// that nothing is left of it, and returns the verdict.
func (v *Volumes) discard(ctx context.Context, sub *Subscription, lv *berth.LocalVolume, verdict *Failure) error {
	if err := v.remove(ctx, sub, lv); err != nil {
		return &Pending{
			Volume: lv.Name, Cause: err,
			What: fmt.Sprintf("%v; node %s has not confirmed yet that nothing is left of it", verdict, lv.Spec.NodeName),
		}
	}
	return verdict
}

// unanswered decides what to say when the agent gave no final answer in time.
func (v *Volumes) unanswered(ctx context.Context, sub *Subscription, lv *berth.LocalVolume, req Request, signs uint64, cause error) error {
	if ctx.Err() == nil { // there is time left: it was not the caller who stopped
		if verdict := verdictOf(lv, req.GiveUp && v.MayTakeBack(lv)); verdict != nil {
			return v.discard(ctx, sub, lv, verdict)
		}
		if gone, err := v.nodeGone(ctx, lv.Spec.NodeName); err == nil && gone && neverReady(lv) {
			return v.release(ctx, sub, lv)
		}
	}
	return v.stillGoing(ctx, lv, signs, cause)
}

// stillGoing describes a wait that ran out.
func (v *Volumes) stillGoing(ctx context.Context, lv *berth.LocalVolume, signs uint64, cause error) error {
	node := lv.Spec.NodeName
	if errors.Is(cause, context.DeadlineExceeded) && v.tracker.lifeSigns(node) == signs {
		v.tracker.markSilent(node)
	}
	what := fmt.Sprintf("node %s is still at it", node)
	ready := meta.FindStatusCondition(lv.Status.Conditions, berth.LocalVolumeReady)
	switch {
	case lv.DeletionTimestamp != nil:
		what = fmt.Sprintf("node %s has not confirmed its deletion yet", node)
	case ready != nil && ready.Message != "":
		what = fmt.Sprintf("node %s: %s: %s", node, ready.Reason, ready.Message)
	case ready == nil:
		what = fmt.Sprintf("the Berth agent of node %s has not answered; is its pod running and the node Ready?", node)
	}
	if v.tracker.isSilent(node) && ctx.Err() == nil {
		if gone, err := v.nodeGone(ctx, node); err == nil && gone {
			what = fmt.Sprintf("node %s is gone from the cluster", node)
		}
	}
	return &Pending{Volume: lv.Name, What: what, Cause: cause}
}

// neverReady reports whether the agent never said that the volume stands. Such a
// volume was never mounted, so no data can be on it.
func neverReady(lv *berth.LocalVolume) bool {
	return lv.Status.Capacity == nil && !lv.Status.Formatted &&
		!meta.IsStatusConditionTrue(lv.Status.Conditions, berth.LocalVolumeReady)
}

// nodeGone asks the API server whether the Node object is gone.
func (v *Volumes) nodeGone(ctx context.Context, name string) (bool, error) {
	err := v.live.Get(ctx, types.NamespacedName{Name: name}, &corev1.Node{})
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	return false, err
}

// release takes back a volume that was never ready from a node that is gone,
// without the agent's proof, so that the claim can go elsewhere. No data is lost,
// for none was ever written. Should the machine come back with something carved,
// its agent finds it without an owner and quarantines it.
func (v *Volumes) release(ctx context.Context, sub *Subscription, lv *berth.LocalVolume) error {
	// The resource version makes sure that it is still as it was judged: an agent
	// that answers in this moment wins.
	version := lv.ResourceVersion
	err := v.writer.Delete(ctx, named(lv.Name), client.Preconditions{UID: &lv.UID, ResourceVersion: &version})
	if err != nil && !apierrors.IsNotFound(err) {
		return &Pending{Volume: lv.Name, What: "node " + lv.Spec.NodeName + " is gone and the volume could not be taken back", Cause: err}
	}
	if err == nil {
		patch := fmt.Appendf(nil, `{"metadata":{"uid":%q,"finalizers":null}}`, lv.UID)
		if err := v.writer.Patch(ctx, named(lv.Name), client.RawPatch(types.MergePatchType, patch)); err != nil && !apierrors.IsNotFound(err) {
			return &Pending{Volume: lv.Name, What: "node " + lv.Spec.NodeName + " is gone and the finalizer could not be removed", Cause: err}
		}
		if err := sub.UntilGone(ctx, lv.UID); err != nil {
			return &Pending{Volume: lv.Name, What: "it is being deleted", Cause: err}
		}
	}
	return &Failure{
		Volume: lv.Name, Node: lv.Spec.NodeName, Reason: ReasonNodeGone,
		Message: "the node left the cluster before the volume was made",
	}
}

// patience bounds a wait: by the caller's deadline less a reserve, and by much
// less when the node's agent was silent last time.
func (v *Volumes) patience(ctx context.Context, node string) (context.Context, context.CancelFunc) {
	wait := defaultWait
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		wait = left - min(left/4, maxReserve)
	}
	if v.tracker.isSilent(node) {
		wait = min(wait, silentWait)
	}
	return context.WithTimeout(ctx, wait)
}
