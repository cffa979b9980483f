// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// copiesAskedFor notes what a pool's reconciler asks of the copies.
type copiesAskedFor struct {
	asked []string
	err   error
}

func (c *copiesAskedFor) Seen(poolSet, poolName string, _ MetadataSource, groupUUID string, _ uint64, _ bool) {
	if ask := "see " + poolSet + " " + poolName + " " + groupUUID; len(c.asked) == 0 || c.asked[len(c.asked)-1] != ask {
		c.asked = append(c.asked, ask)
	}
}

func (c *copiesAskedFor) Stop(poolSet string) { c.asked = append(c.asked, "stop "+poolSet) }

func (c *copiesAskedFor) Forget(_ context.Context, poolSet, groupUUID string) error {
	if c.err == nil {
		c.asked = append(c.asked, "forget "+poolSet+" "+groupUUID)
	}
	return c.err
}

// The copies go when the volume group was removed on purpose, and not before; the Pool waits
// for that.
func TestCopiesGoWithTheGroup(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a")
	copies := &copiesAskedFor{err: errors.New("the API server is away")}
	h.pools.Metadata = copies
	h.apply(poolSet())
	h.settle()
	uuid := h.pool().Status.VGUUID
	seen := "see fast fast-n1 " + uuid
	if !slices.Equal(copies.asked, []string{seen}) {
		t.Errorf("asked for %q", copies.asked)
	}
	// The PoolSet's deletion deletes nothing.
	if err := h.api.Delete(t.Context(), &v1alpha1.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: "fast"}}); err != nil {
		t.Fatal(err)
	}
	h.settle()
	if !slices.Equal(copies.asked, []string{seen}) {
		t.Errorf("asked for %q", copies.asked)
	}
	if err := h.api.Delete(t.Context(), h.pool()); err != nil {
		t.Fatal(err)
	}
	if err := h.reconcile(); err == nil || !errors.Is(err, copies.err) {
		t.Errorf("got %v", err)
	}
	if len(h.groups) > 0 || len(h.pool().Finalizers) == 0 {
		t.Errorf("the group is %v, the finalizers %v", h.groups, h.pool().Finalizers)
	}
	copies.err = nil
	h.settle()
	if last := copies.asked[len(copies.asked)-1]; last != "forget fast "+uuid || slices.Contains(copies.asked[:len(copies.asked)-1], last) || copies.asked[1] != "stop fast" {
		t.Errorf("asked for %q", copies.asked)
	}
	if err := h.api.Get(t.Context(), client.ObjectKey{Name: "fast-n1"}, &v1alpha1.Pool{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Pool is still there: %v", err)
	}
}

func TestCopiesOfAnAdoptedGroup(t *testing.T) {
	t.Parallel()
	h := newAdoptingHost(t)
	copies := &copiesAskedFor{}
	h.pools.Metadata = copies
	h.apply(poolSet(adoptingSet))
	h.settle()
	h.wantAdopted()
	if want := []string{"see fast fast-n1 " + adoptedUUID}; !slices.Equal(copies.asked, want) {
		t.Errorf("asked for %q, not %q", copies.asked, want)
	}
}
