// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
)

const (
	secondUID  = "00000000-0000-4000-8000-000000000004"
	secondName = "pvc-4"
)

// groupHost is a node with two volumes, and a group snapshot of them that was asked for.
type groupHost struct{ *copyHost }

// members of the group, by the names of their volumes.
var members = map[string]struct{ name, uid string }{
	lvName:     {"group-1", "00000000-0000-4000-8000-000000000011"},
	secondName: {"group-4", "00000000-0000-4000-8000-000000000014"},
}

func newGroupHost(t *testing.T, vg *lvmtest.VG) *groupHost {
	t.Helper()
	h := &groupHost{newCopyHost(t, vg, localVolume(), localVolume(func(lv *v1alpha1.LocalVolume) { lv.Name, lv.UID = secondName, secondUID }))}
	h.settleGroup()
	return h
}

// ask posts the LocalSnapshot of a volume.
func (h *groupHost) ask(volume string, mutate ...func(*v1alpha1.LocalSnapshot)) {
	h.t.Helper()
	h.create(localSnapshot(append([]func(*v1alpha1.LocalSnapshot){func(s *v1alpha1.LocalSnapshot) {
		s.Name, s.UID = members[volume].name, types.UID(members[volume].uid)
		s.Spec.VolumeName, s.Spec.VolumeUID = volume, lvUID
		if volume == secondName {
			s.Spec.VolumeUID = secondUID
		}
		s.Spec.Group = &v1alpha1.SnapshotGroup{Name: "group", Members: 2}
	}}, mutate...)...))
}

func (h *groupHost) reconcileGroup() error {
	var errs []error
	for _, name := range []string{lvName, secondName} {
		request := reconcile.Request{NamespacedName: types.NamespacedName{Name: name}}
		_, err := h.agent.ReconcileLive(h.t.Context(), request)
		_, deleteErr := h.agent.ReconcileDeleted(h.t.Context(), request)
		errs = append(errs, err, deleteErr)
	}
	for _, name := range []string{lvName, secondName} {
		_, err := h.snapshots.Reconcile(h.t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: members[name].name}})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (h *groupHost) settleGroup() {
	h.t.Helper()
	for range 20 {
		before := h.writes
		if err := h.reconcileGroup(); err == nil && h.writes == before && !h.workedOn(&h.snapshots.works) {
			return
		}
	}
	h.t.Fatalf("does not settle: %v", h.reconcileGroup())
}

// member is the LocalSnapshot of a volume, nil when there is none.
func (h *groupHost) member(volume string) *v1alpha1.LocalSnapshot {
	h.t.Helper()
	s := &v1alpha1.LocalSnapshot{}
	if err := h.api.Get(h.t.Context(), client.ObjectKey{Name: members[volume].name}, s); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return nil
		}
		h.t.Fatal(err)
	}
	return s
}

// write puts a text behind the filesystem of both volumes.
func (h *groupHost) write(text string) {
	h.t.Helper()
	for _, uid := range []string{lvUID, secondUID} {
		f, err := os.OpenFile(h.deviceOf(uid), os.O_RDWR, 0)
		if err != nil {
			h.t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte(text), mib); err != nil {
			h.t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			h.t.Fatal(err)
		}
	}
}

// wantGroupTaken checks that both stand, and returns what both hold.
func (h *groupHost) wantGroupTaken(among ...string) string {
	h.t.Helper()
	first, second := h.member(lvName), h.member(secondName)
	if !isTaken(first) || !isTaken(second) || !first.Status.CreationTime.Equal(second.Status.CreationTime) {
		h.t.Fatalf("the group is\n%+v\n%+v", first.Status, second.Status)
	}
	h.wantOnDisk([]string{lvUID, secondUID}, []string{members[lvName].uid, members[secondName].uid})
	if still := h.vg.Suspended(); len(still) > 0 {
		h.t.Fatalf("%q stand still", still)
	}
	var held []string
	for _, volume := range []string{lvName, secondName} {
		content := h.vg.ThinContent(h.t, "snap-"+members[volume].uid)[mib:]
		held = append(held, string(content[:bytes.IndexByte(content, 0)]))
	}
	if held[0] != held[1] {
		h.t.Fatalf("the snapshots are of two instants: they hold %q", held)
	}
	if slices.Contains(among, held[0]) {
		return held[0]
	}
	h.t.Fatalf("the snapshots hold %q, and not one of %q", held[0], among)
	return ""
}

func TestSnapshotGroup(t *testing.T) {
	t.Parallel()
	h := newGroupHost(t, lvmtest.NewThinVG(t, 64*mib))
	h.write("before")
	h.ask(lvName)
	h.settleGroup()
	if s := h.member(lvName); isTaken(s) || !strings.Contains(s.Status.Conditions[0].Message, "1 of its 2") {
		t.Fatalf("without the other it is %+v", s.Status)
	}
	h.wantOnDisk([]string{lvUID, secondUID}, nil)
	h.write("between")
	h.ask(secondName)
	h.settleGroup()
	h.write("after")
	h.wantGroupTaken("between")
	h.startCopies()
	h.settleGroup()
	h.wantGroupTaken("between")
	for volume := range members {
		if err := h.api.Delete(t.Context(), h.member(volume)); err != nil {
			t.Fatal(err)
		}
	}
	h.settleGroup()
	h.wantOnDisk([]string{lvUID, secondUID}, nil)
}

// Killed after each write, also between the two statuses, what one of them was told is what
// the other gets.
func TestSnapshotGroupKilledAtEachStep(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		h := newGroupHost(t, lvmtest.NewThinVG(t, 64*mib))
		h.write("before")
		h.ask(lvName)
		h.ask(secondName)
		h.killer.arm(n)
		for range 6 {
			_ = h.reconcileGroup()
		}
		died := h.killer.died()
		told := isTaken(h.member(lvName)) || isTaken(h.member(secondName))
		h.startCopies()
		h.write("after")
		h.settleGroup()
		if told {
			h.wantGroupTaken("before")
		} else {
			h.wantGroupTaken("before", "after")
		}
		if !died {
			if n < 2 {
				t.Fatalf("only %d steps", n)
			}
			return
		}
	}
}

// The host's lvm, or who takes the instant, is killed with the agent.
func TestSnapshotGroupPowerLost(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		h := newGroupHost(t, lvmtest.NewThinVG(t, 64*mib))
		h.write("before")
		h.ask(lvName)
		h.ask(secondName)
		lost := h.vg.LosePower(n)
		for range 6 {
			_ = h.reconcileGroup()
		}
		died := lost()
		h.vg.Reboot()
		h.startCopies()
		h.settleGroup()
		h.wantGroupTaken("before")
		if !died {
			if n < 10 {
				t.Fatalf("only %d steps", n)
			}
			return
		}
	}
}

// One whose deletion is asked for while another one takes the group is not found to be absent
// before it is made.
func TestSnapshotGroupIsDeletedWhileItIsTaken(t *testing.T) {
	t.Parallel()
	h := newGroupHost(t, lvmtest.NewThinVG(t, 64*mib))
	h.ask(secondName)
	h.settleGroup() // it has its finalizer, and waits for the other
	second := h.member(secondName)
	h.ask(lvName)
	taking, deleted := make(chan struct{}), make(chan error, 1)
	h.vg.Edit(h.vg.Name, func(e *lvmtest.Editor) { e.Add("theirs", 1) }) // so that the group is looked at
	h.vg.OnProcess(func([]string) {
		h.vg.OnProcess(nil)
		close(taking)
		select {
		case err := <-deleted: // it did not wait for the group
			deleted <- err
		case <-time.After(50 * time.Millisecond):
		}
	})
	go func() {
		<-taking
		err := h.api.Delete(context.Background(), second)
		if err == nil {
			_, err = h.snapshots.Reconcile(context.Background(), memberRequest(secondName))
		}
		deleted <- err
	}()
	for range 3 {
		_, _ = h.snapshots.Reconcile(t.Context(), memberRequest(lvName))
	}
	if err := <-deleted; err != nil {
		t.Fatal(err)
	}
	if err := h.api.Delete(t.Context(), h.member(lvName)); err != nil {
		t.Fatal(err)
	}
	h.settleGroup()
	h.wantOnDisk([]string{lvUID, secondUID}, nil)
}

func memberRequest(volume string) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Name: members[volume].name}}
}

// What one of a group is refused for, none gets, and nothing is left.
func TestSnapshotGroupRefused(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		vg      func(testing.TB, int64) *lvmtest.VG
		size    int64
		mutate  func(*v1alpha1.LocalSnapshot)
		reason  string
		message string
	}{
		"without room":          {lvmtest.NewThinVG, 24 * mib, nil, v1alpha1.ReasonNoSpace, ""},
		"of a thick pool":       {lvmtest.NewVG, 64 * mib, nil, v1alpha1.ReasonInvalid, "thin"},
		"one volume is gone":    {lvmtest.NewThinVG, 64 * mib, func(s *v1alpha1.LocalSnapshot) { s.Spec.VolumeName = "pvc-9" }, v1alpha1.ReasonInvalid, "pvc-9"},
		"one is another's":      {lvmtest.NewThinVG, 64 * mib, func(s *v1alpha1.LocalSnapshot) { s.Spec.VolumeUID = copyUID }, v1alpha1.ReasonInvalid, secondName},
		"the same volume":       {lvmtest.NewThinVG, 64 * mib, func(s *v1alpha1.LocalSnapshot) { s.Spec.VolumeName, s.Spec.VolumeUID = lvName, lvUID }, v1alpha1.ReasonInvalid, "twice"},
		"it is in another pool": {lvmtest.NewThinVG, 64 * mib, func(s *v1alpha1.LocalSnapshot) { s.Spec.Pool = "slow" }, v1alpha1.ReasonInvalid, "in one pool"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newGroupHost(t, tc.vg(t, tc.size))
			h.ask(lvName)
			if tc.mutate == nil {
				tc.mutate = func(*v1alpha1.LocalSnapshot) {}
			}
			h.ask(secondName, tc.mutate)
			h.settleGroup()
			for volume := range members {
				s := h.member(volume)
				c := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.LocalSnapshotReady)
				if c == nil || c.Reason != tc.reason || !strings.Contains(c.Message, tc.message) || !isFinalSnapshot(s) {
					t.Errorf("condition %+v", c)
				}
			}
			h.wantOnDisk([]string{lvUID, secondUID}, nil)
		})
	}
}

// The snapshot of one encrypted volume is taken as a group's is: its filesystem is on the
// open device, which lvm does not freeze.
func TestSnapshotOfEncryptedVolume(t *testing.T) {
	t.Parallel()
	h := thinHost(t, localVolume(encrypted))
	h.settleCopies()
	h.create(localSnapshot())
	h.settleCopies()
	if s := h.snapshot(); isTaken(s) || isFinalSnapshot(s) {
		t.Fatalf("of a volume that no pod had: %+v", s.Status)
	}
	e, err := h.agent.Ledger.Get(lvUID)
	if err != nil {
		t.Fatal(err)
	}
	e.Encryption.Seal = ledger.Sealed
	if err := h.agent.Ledger.Put(e); err != nil {
		t.Fatal(err)
	}
	h.settleCopies()
	s := h.snapshot()
	if !isTaken(s) || s.Status.RestoreSize.Value() != 8*mib || s.Status.Encryption == nil || s.Status.Encryption.UUID != lvUID {
		t.Fatalf("it is %+v", s.Status)
	}
	if rec := recordOfSnapshot(s); rec.SizeBytes != e.Record.SizeBytes {
		t.Errorf("it has %d bytes, its volume %d", rec.SizeBytes, e.Record.SizeBytes)
	}
	if !slices.ContainsFunc(h.vg.Commands(), func(command string) bool { return strings.Contains(command, lvm.TagInstant) }) {
		t.Errorf("its instant was not noted: %q", h.vg.Commands())
	}
	h.wantOnDisk([]string{lvUID}, []string{snapUID})
}
