// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/volume"
)

// RetainingBackend is a backend that keeps what deleted volumes held; *hostpath.Backend is
// one.
type RetainingBackend interface {
	// Retained returns what is kept, complete or an error.
	Retained(ctx context.Context) ([]hostpath.Retained, error)
	// TakeBack moves what is kept to a directory where it stays, and returns the path of it.
	TakeBack(ctx context.Context, name string) (dir string, err error)
}

// shownRetained is how many of what is kept the status shows.
const shownRetained = 64

// retainedView is what is kept of a pool's deleted volumes.
type retainedView struct {
	count int32
	// bytes that are promised to them.
	bytes     int64
	last      []v1alpha1.RetainedVolume
	takenBack []v1alpha1.TakenBackVolume
	// again is set when something could not be taken back that can be later.
	again bool
}

// retained takes back what spec.takeBack names and says what is kept. nil where nothing ever
// is.
func (r *PoolReconciler) retained(ctx context.Context, pool *v1alpha1.Pool, b volume.Backend) (*retainedView, error) {
	keeps, ok := b.(RetainingBackend)
	if !ok {
		return nil, nil
	}
	view := &retainedView{}
	for _, name := range pool.Spec.TakeBack {
		answer := v1alpha1.TakenBackVolume{Name: name}
		dir, err := keeps.TakeBack(ctx, name)
		if err != nil {
			answer.Message = err.Error()
			view.again = view.again || !errors.Is(err, volume.ErrNotFound) && !errors.Is(err, volume.ErrInvalid)
		}
		answer.Path = dir
		view.takenBack = append(view.takenBack, answer)
	}
	all, err := keeps.Retained(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(x, y hostpath.Retained) int {
		return cmp.Or(y.Deleted.Compare(x.Deleted), strings.Compare(x.Entry, y.Entry))
	})
	view.count = int32(min(len(all), 1<<31-1))
	for _, k := range all {
		view.bytes += k.SizeBytes
	}
	for _, k := range all[:min(len(all), shownRetained)] {
		shown := v1alpha1.RetainedVolume{
			Entry: k.Entry, Volume: k.Name, Claim: k.Claim, Capacity: *resource.NewQuantity(k.SizeBytes, resource.BinarySI),
			Deleted: metav1.NewTime(k.Deleted), Path: k.Directory,
		}
		if !k.TakenBack {
			until := metav1.NewTime(k.KeptUntil)
			shown.KeptUntil = &until
		}
		view.last = append(view.last, shown)
	}
	return view, nil
}

// retainedDiffers reports whether the status shows something else than is kept.
func retainedDiffers(s *v1alpha1.PoolStatus, view *retainedView) bool {
	return view != nil && (s.RetainedCount != view.count || !apiequality.Semantic.DeepEqual(s.Retained, view.last))
}

func fillRetained(s *v1alpha1.PoolStatus, view *retainedView) {
	if view != nil {
		s.RetainedCount, s.Retained = view.count, view.last
	}
}
