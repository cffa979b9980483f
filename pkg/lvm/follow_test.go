// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"testing"

	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
)

// An operator takes the last change back by vgcfgrestore, which gives the group the generation that
// it had: what is followed from there is not what was known before.
func TestFollowAfterRestore(t *testing.T) {
	t.Parallel()
	for name, restore := range map[string]func(*lvmtest.Editor){
		"a volume is gone":    func(e *lvmtest.Editor) { e.Remove(id(4)) },
		"a volume is back":    func(e *lvmtest.Editor) { e.Add("theirs", 1) },
		"another of its name": func(e *lvmtest.Editor) { e.Replace(id(4)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.create(t, 4)
			b := w.Backend()
			if _, err := b.Group(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.Edit(w.Name, func(e *lvmtest.Editor) {
				restore(e)
				e.SameGeneration()
			})
			if _, err := b.Create(t.Context(), spec(5, extent)); err != nil {
				t.Fatal(err)
			}
			got, err := b.Group(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want, err := w.Backend().Group(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(got.LVs) != len(want.LVs) || got.FreeExtents != want.FreeExtents {
				t.Errorf("%d volumes are known and %d extents free, and there are %d and %d", len(got.LVs), got.FreeExtents, len(want.LVs), want.FreeExtents)
			}
			for _, lv := range want.LVs {
				if known := got.Volume(lv.Name); known == nil || known.UUID != lv.UUID {
					t.Errorf("volume %s is taken to be %+v", lv.Name, known)
				}
			}
		})
	}
}
