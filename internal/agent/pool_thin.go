// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// thinPolicy is how a thin pool is used. It follows the PoolSet while the backend lives;
// until it was read, nothing is promised that is not there.
type thinPolicy struct {
	of atomic.Pointer[lvm.ThinPolicy]
}

func (p *thinPolicy) get() lvm.ThinPolicy {
	if policy := p.of.Load(); policy != nil {
		return *policy
	}
	return lvm.ThinPolicy{OverprovisionPercent: 100, InitialPercent: 1, ThresholdPercent: 80, ExtendPercent: 20, HighWaterPercent: 95}
}

// set reads spec.thin.
func (p *thinPolicy) set(spec *v1alpha1.ThinPool) error {
	if spec == nil {
		return nil
	}
	ratio, err := percentOf(spec.OverprovisionRatio)
	if err != nil {
		return fmt.Errorf("spec.thin.overprovisionRatio: %w", err)
	}
	policy := lvm.ThinPolicy{
		OverprovisionPercent: ratio,
		InitialPercent:       int64(spec.InitialPercent),
		ThresholdPercent:     int64(spec.Autoextend.ThresholdPercent),
		ExtendPercent:        int64(spec.Autoextend.Percent),
		HighWaterPercent:     int64(spec.HighWaterPercent),
		FailWhenFull:         new(spec.WhenFull == v1alpha1.WhenFullFail),
	}
	if err := policy.Check(); err != nil {
		return fmt.Errorf("spec.thin: %w", err)
	}
	p.of.Store(&policy)
	return nil
}

// percentOf reads a ratio such as "1.5" without a loss.
func percentOf(ratio string) (int64, error) {
	r, ok := new(big.Rat).SetString(ratio)
	if !ok {
		return 0, fmt.Errorf("%w: %q is not a number", volume.ErrInvalid, ratio)
	}
	r.Mul(r, big.NewRat(100, 1))
	if !r.IsInt() || !r.Num().IsInt64() {
		return 0, fmt.Errorf("%w: %q has more than two decimals", volume.ErrInvalid, ratio)
	}
	return r.Num().Int64(), nil
}

// lookAtThinPool looks after the thin pool and says how it is.
func (r *PoolReconciler) lookAtThinPool(ctx context.Context, rec *poolRecord, b GroupBackend) (poolView, error) {
	r.follow(rec)
	state, err := b.Tend(ctx)
	r.judged(rec, thinWords(state, err), false)
	switch {
	case rec.thinPool() != nil && errors.Is(err, volume.ErrPoolUnavailable):
		view := failed(thinPoolReason(err), err.Error())
		view.state = v1alpha1.PoolDegraded // volumes that are active go on
		return view, nil
	case errors.Is(err, lvm.ErrThinTransaction):
		return failed(v1alpha1.ReasonThinPoolBehind,
			"nothing is lost, and nothing is changed until somebody has decided which of both is right: see docs/guides/restore-lvm-metadata.md; "+err.Error()), nil
	case errors.Is(err, volume.ErrNoSpace), errors.Is(err, volume.ErrExists), errors.Is(err, volume.ErrInvalid), errors.Is(err, volume.ErrToolMissing):
		return failed(v1alpha1.ReasonPoolError, err.Error()), nil
	case err != nil:
		return unknown(err), err
	case state == nil:
		return failed(v1alpha1.ReasonPoolError, "the volume group has no thin pool"), nil
	}
	if state.Grown {
		r.Log.Info("A thin pool got more of its volume group", "pool", rec.PoolSet, "dataBytes", state.DataBytes, "metadataBytes", state.MetadataBytes)
	}
	view, err := measure(ctx, b, healthy(), v1alpha1.ReasonPoolError)
	if err != nil || view.ready != metav1.ConditionTrue {
		return view, err
	}
	judgeThinPool(&view, state, rec.thinPool())
	if p := r.live(rec.PoolSet); state.Grown || p.admits.Swap(view.capacity.FreeBytes > 0) != (view.capacity.FreeBytes > 0) {
		r.Backends.Touch(rec.PoolSet) // what is published, and who waits for room
	}
	view.thin = &v1alpha1.ThinPoolStatus{
		DataPercent:     int32(state.Usage.DataPercent()),
		MetadataPercent: int32(state.Usage.MetadataPercent()),
		Data:            *resource.NewQuantity(state.DataBytes, resource.BinarySI),
		Metadata:        *resource.NewQuantity(state.MetadataBytes, resource.BinarySI),
	}
	return view, nil
}

// judgeThinPool says what is wrong with a thin pool, and what to do.
func judgeThinPool(view *poolView, state *lvm.ThinState, adopted *lvm.ThinPoolID) {
	u, room := state.Usage, "add a disk"
	if adopted != nil {
		room = "extend " + adopted.Name + " (lvextend), which Berth never does"
	}
	bad := func(of v1alpha1.PoolState, reason, message string) {
		view.state, view.ready, view.reason, view.message = of, metav1.ConditionFalse, reason, message
	}
	switch {
	case u.Mode == dm.ThinPoolFailed:
		bad(v1alpha1.PoolFailed, v1alpha1.ReasonPoolError,
			"the thin pool has failed and cannot be read; its volumes are as they were when it did: see the node's kernel log, then lvconvert --repair")
	case u.NeedsCheck || u.Mode == dm.ThinPoolReadOnly:
		bad(v1alpha1.PoolFailed, v1alpha1.ReasonPoolError,
			"the metadata of the thin pool cannot be changed any more; what the volumes have can be read: repair it with lvconvert --repair when nothing uses them")
	case u.Mode == dm.ThinPoolOutOfData:
		bad(v1alpha1.PoolDegraded, v1alpha1.ReasonThinPoolFull,
			"the thin pool is full: writes that need room wait or fail; "+room+", or delete volumes or snapshots, or what is in them")
	case view.capacity != nil && view.capacity.FreeBytes == 0 && view.capacity.AllocatedBytes < view.capacity.TotalBytes:
		bad(v1alpha1.PoolDegraded, v1alpha1.ReasonThinPoolFull, fmt.Sprintf(
			"%d %% of the thin pool's data and %d %% of its metadata are in use: no volume is made or grown until there is room; %s, or delete volumes or snapshots, or what is in them",
			u.DataPercent(), u.MetadataPercent(), room))
	}
}
