// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// goneInterval is how often a volume is looked at whose disk was pulled out.
const goneInterval = time.Minute

// problemsOf is what a volume's backend knows to be wrong with it. It starts no program.
func problemsOf(ctx context.Context, backends *Backends, e ledger.Entry) ([]volume.Problem, error) {
	b, err := backends.ForExisting(e.Mode, e.Pool)
	if err != nil {
		return nil, err
	}
	reporter, ok := b.(volume.HealthReporter)
	if !ok {
		return nil, nil
	}
	found, err := reporter.Problems(ctx, e.UID, *e.Record)
	if err != nil {
		return nil, fmt.Errorf("ask for the health of volume %s: %w", e.Name, err)
	}
	return found, nil
}

// judged has the volumes of a pool say how they are, when that may be another than they
// said. words is all that is wrong with the pool, and moving says that it changes without
// other words.
func (r *PoolReconciler) judged(rec *poolRecord, words string, moving bool) {
	p := r.live(rec.PoolSet)
	before := p.judged.Swap(&words)
	if before == nil || *before != words || moving {
		r.Backends.Judge(rec.PoolSet)
	}
}

// raidWords are for judged.
func raidWords(g *lvm.Group, state *lvm.RaidState) string {
	return fmt.Sprintf("%d missing, %d degraded, %d rebuilding, %d failed", g.MissingPVs, state.DegradedVolumes, state.RebuildingVolumes, state.FailedVolumes)
}

// thinWords are for judged.
func thinWords(state *lvm.ThinState, err error) string {
	switch {
	case err != nil:
		return err.Error()
	case state == nil:
		return "no pool"
	}
	return fmt.Sprintf("mode %v, needs check %t", state.Usage.Mode, state.Usage.NeedsCheck)
}

// poolJudged looks at how the volumes of a pool are.
func (r *VolumeReconciler) poolJudged(pool string) {
	for _, e := range r.Ledger.All() {
		if e.Pool != pool || e.State != ledger.Ready {
			continue
		}
		r.suspect(e.Name)
		r.live.add(e.Name)
	}
}

func (r *VolumeReconciler) suspect(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.suspected == nil {
		r.suspected = map[string]bool{}
	}
	r.suspected[name] = true
}

func (r *VolumeReconciler) takeSuspicion(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	suspected := r.suspected[name]
	delete(r.suspected, name)
	return suspected
}

// tellHealth writes how a volume is that stands, if that is news.
func (r *VolumeReconciler) tellHealth(ctx context.Context, lv *v1alpha1.LocalVolume) (reconcile.Result, error) {
	e, err := r.Ledger.Get(string(lv.UID))
	if err != nil {
		return reconcile.Result{}, err
	}
	base := lv.DeepCopy()
	err = r.examine(ctx, lv, e)
	if errors.Is(err, volume.ErrPoolUnavailable) || errors.Is(err, ErrPoolNotFound) {
		// Of a pool that cannot be asked nothing is known.
		r.suspect(lv.Name)
		r.wait(client.ObjectKeyFromObject(lv))
		return reconcile.Result{}, nil
	}
	var result reconcile.Result
	if err == nil {
		result, err = r.conclude(ctx, lv, base, nil)
	}
	if c := meta.FindStatusCondition(lv.Status.Conditions, v1alpha1.LocalVolumeHealthy); err == nil && c != nil && c.Status == metav1.ConditionFalse && c.Reason == lvm.ReasonDiskGone {
		// It ends when a pod lets the volume go, which nothing tells.
		result.RequeueAfter = goneInterval
	}
	if err != nil || result.RequeueAfter > 0 {
		r.suspect(lv.Name)
	}
	return result, err
}

// examine writes into the status what is wrong with a volume. The volume stays Ready.
func (r *VolumeReconciler) examine(ctx context.Context, lv *v1alpha1.LocalVolume, e ledger.Entry) error {
	problems, err := problemsOf(ctx, r.Carver.Backends, e)
	if err != nil {
		return err
	}
	if len(problems) == 0 {
		if meta.FindStatusCondition(lv.Status.Conditions, v1alpha1.LocalVolumeHealthy) != nil {
			setCondition(lv, v1alpha1.LocalVolumeHealthy, metav1.ConditionTrue, v1alpha1.ReasonGood, "nothing is wrong with it any more")
		}
		return nil
	}
	setCondition(lv, v1alpha1.LocalVolumeHealthy, metav1.ConditionFalse, problems[0].Reason,
		fmt.Sprintf("%s; Pool %s-%s says what happens about it, and what to do", problems[0].Message, lv.Spec.Pool, lv.Spec.NodeName))
	return nil
}
