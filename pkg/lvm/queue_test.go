// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
)

// The price list: how many lvm processes an operation costs when nobody else
// changes the group.
func TestProcesses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rec := w.create(t, 4)
	for _, step := range []struct {
		name string
		want int
		run  func() error
	}{
		{"create", 1, func() error { _, err := w.backend.Create(t.Context(), spec(5, extent)); return err }},
		{"create again", 0, func() error { _, err := w.backend.Create(t.Context(), spec(5, extent)); return err }},
		{"locate", 0, func() error { _, err := w.backend.Locate(t.Context(), id(4), rec); return err }},
		{"capacity", 0, func() error { _, err := w.backend.Capacity(t.Context()); return err }},
		{"list", 0, func() error { _, err := w.backend.List(t.Context()); return err }},
		{"grow", 1, func() error { _, err := w.backend.Grow(t.Context(), id(4), rec, 3*extent); return err }},
		{"grow again", 0, func() error { _, err := w.backend.Grow(t.Context(), id(4), rec, 3*extent); return err }},
		{"delete", 1, func() error { return w.backend.Delete(t.Context(), id(4), &rec, volume.WipeZero) }},
		{"delete again", 0, func() error { return w.backend.Delete(t.Context(), id(4), &rec, volume.WipeZero) }},
		{"a refused create", 0, func() error {
			if _, err := w.backend.Create(t.Context(), spec(6, 1<<40)); !errors.Is(err, volume.ErrNoSpace) {
				return fmt.Errorf("%w, want ErrNoSpace", err)
			}
			return nil
		}},
		{"an operator's change and capacity", 1, func() error {
			w.Edit(w.Name, func(e *lvmtest.Editor) { e.Add("theirs", 1) })
			_, err := w.backend.Capacity(t.Context())
			return err
		}},
	} {
		before := w.Processes()
		if err := step.run(); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if got := w.Processes() - before; got != step.want {
			t.Errorf("%s cost %d processes, want %d", step.name, got, step.want)
		}
	}
}

// What waits while a process runs shares the next one.
func TestBurst(t *testing.T) {
	t.Parallel()
	const volumes = 100
	vg := lvmtest.NewVG(t, volumes*extent)
	b := vg.Backend()
	// burst runs all calls at once, the first process waiting until all are there,
	// and returns how many processes they took.
	burst := func(call func(n int) error) int {
		if _, err := b.Capacity(t.Context()); err != nil {
			t.Fatal(err)
		}
		gate := make(chan struct{})
		vg.OnProcess(func([]string) {
			<-gate
			// lvm takes longer than whoever was answered needs to come again. One processor would
			// go from the first of them to the process that it asks for, and from that to the next.
			for range volumes {
				runtime.Gosched()
			}
		})
		before := vg.Processes()
		var wg sync.WaitGroup
		for n := range volumes {
			wg.Go(func() {
				if err := call(n); err != nil {
					t.Error(err)
				}
			})
			for vg.Processes() == before {
				runtime.Gosched()
			}
		}
		for b.Waiting() < volumes-1 {
			runtime.Gosched()
		}
		close(gate)
		wg.Wait()
		vg.OnProcess(nil)
		return vg.Processes() - before
	}
	if n := burst(func(n int) error { _, err := b.Create(t.Context(), spec(n, extent)); return err }); n > 3 {
		t.Errorf("%d creates took %d processes", volumes, n)
	}
	// A deletion waits twice, to look and to act, so how many share a process depends
	// on when they come; that they do share is what matters.
	if n := burst(func(n int) error { return b.Delete(t.Context(), id(n), nil, volume.WipeNone) }); n >= volumes {
		t.Errorf("%d deletes took %d processes", volumes, n)
	}
	if found, err := b.List(t.Context()); err != nil || len(found) != 0 {
		t.Errorf("List = %d volumes, %v", len(found), err)
	}
}

// One of a batch that fails takes nobody along, and is told why.
func TestBatchWithOneFailure(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewVG(t, 16*extent)
	b := vg.Backend()
	if _, err := b.Capacity(t.Context()); err != nil {
		t.Fatal(err)
	}
	started, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	vg.OnProcess(func([]string) {
		once.Do(func() {
			close(started)
			<-gate
		})
	})
	var wg sync.WaitGroup
	errs := make([]error, 8)
	create := func(n int) {
		wg.Go(func() { _, errs[n] = b.Create(t.Context(), spec(n, extent)) })
	}
	create(0)
	<-started
	for n := 1; n < len(errs); n++ {
		create(n)
	}
	// An operator takes a name of ours in this moment: what lvm says of it must not
	// be told to the others.
	vg.Edit(vg.Name, func(e *lvmtest.Editor) { e.Add(id(3), 1) })
	close(gate)
	wg.Wait()
	for n, err := range errs {
		if n == 3 {
			if !errors.Is(err, volume.ErrExists) {
				t.Errorf("Create(3) = %v, want ErrExists", err)
			}
			continue
		}
		if err != nil {
			t.Errorf("Create(%d) = %v", n, err)
		}
	}
}

// A caller that gives up while its volume is being made must not be able to lose
// it: a Delete that comes after sees it.
func TestCancelThenDelete(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"running", "waiting"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			vg := lvmtest.NewVG(t, 16*extent)
			b := vg.Backend()
			if _, err := b.Capacity(t.Context()); err != nil {
				t.Fatal(err)
			}
			started, gate := make(chan struct{}), make(chan struct{})
			var once sync.Once
			vg.OnProcess(func([]string) {
				once.Do(func() {
					close(started)
					<-gate
				})
			})
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() {
				own := ctx
				if when == "waiting" {
					own = t.Context()
				}
				_, _ = b.Create(own, spec(1, extent))
			})
			<-started
			cancelled := make(chan error, 1)
			if when == "waiting" {
				go func() { _, err := b.Create(ctx, spec(2, extent)); cancelled <- err }()
			} else {
				cancelled <- nil
			}
			cancel()
			<-cancelled
			target := id(1)
			if when == "waiting" {
				target = id(2)
			}
			wg.Go(func() {
				if err := b.Delete(t.Context(), target, nil, volume.WipeZero); err != nil {
					t.Error(err)
				}
			})
			close(gate)
			wg.Wait()
			found, err := b.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range found {
				if f.ID == target {
					t.Error("the volume has come back after its deletion")
				}
			}
		})
	}
}

// A wipe that takes long holds up nobody.
func TestWipeDoesNotBlock(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewVG(t, 16*extent)
	slow := &slowNodes{Nodes: vg.Nodes(), started: make(chan struct{}), gate: make(chan struct{})}
	b, err := lvm.NewBackend(lvm.NewClient(vg.Runner(), vg.Flush), lvm.Options{
		GroupName: vg.Name, GroupUUID: vg.UUID, Nodes: slow, Seqno: vg.Seqno,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(t.Context(), spec(1, extent)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Delete(t.Context(), id(1), nil, volume.WipeZero); err != nil {
			t.Error(err)
		}
	})
	<-slow.started
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := b.Create(ctx, spec(2, extent)); err != nil {
		t.Errorf("Create beside a wipe: %v", err)
	}
	close(slow.gate)
	wg.Wait()
}

type slowNodes struct {
	lvm.Nodes
	started, gate chan struct{}
}

func (s *slowNodes) Wipe(ctx context.Context, loc volume.Location, policy volume.WipePolicy) error {
	close(s.started)
	<-s.gate
	return s.Nodes.Wipe(ctx, loc, policy)
}

// A volume group in a condition that we do not understand is left alone.
func TestUnusableGroup(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spoil func(w *world)
		state lvm.State
		want  error
	}{
		"exported":    {func(w *world) { w.Edit(w.Name, func(e *lvmtest.Editor) { e.SetExported(true) }) }, lvm.StateExported, volume.ErrPoolUnavailable},
		"foreign":     {func(w *world) { w.Edit(w.Name, func(e *lvmtest.Editor) { e.SetSystemID("other-host") }) }, lvm.StateForeign, volume.ErrPoolUnavailable},
		"replaced":    {func(w *world) { w.Edit(w.Name, func(e *lvmtest.Editor) { e.SetUUID() }) }, "", volume.ErrIdentity},
		"disk pulled": {func(w *world) { w.SetMissing(w.Devices[0], true) }, "", volume.ErrPoolUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			test.spoil(w)
			before := len(w.Commands())
			for call, f := range map[string]func() error{
				"Create":   func() error { _, err := w.backend.Create(t.Context(), spec(1, extent)); return err },
				"Grow":     func() error { _, err := w.backend.Grow(t.Context(), id(2), w.rec, 4*extent); return err },
				"Delete":   func() error { return w.backend.Delete(t.Context(), id(2), &w.rec, volume.WipeZero) },
				"absent":   func() error { return w.backend.Delete(t.Context(), id(9), nil, volume.WipeZero) },
				"List":     func() error { _, err := w.backend.List(t.Context()); return err },
				"Capacity": func() error { _, err := w.backend.Capacity(t.Context()); return err },
			} {
				if err := f(); !errors.Is(err, test.want) || !errors.Is(err, volume.ErrPoolUnavailable) {
					t.Errorf("%s = %v, want %v", call, err, test.want)
				}
			}
			if now := w.Commands(); len(now) != before {
				t.Errorf("commands were given: %v", now[before:])
			}
			g, err := w.backend.Group(t.Context())
			if test.state != "" && (err != nil || g.State() != test.state) {
				t.Errorf("Group = %+v, %v, want state %s", g, err, test.state)
			}
			if test.state == "" && !errors.Is(err, test.want) {
				t.Errorf("Group = %v, want %v", err, test.want)
			}
		})
	}
}

// With one of two disks missing, what lies on the other can be used, and nothing
// is changed, and nothing is proven absent.
func TestPartialGroup(t *testing.T) {
	t.Parallel()
	h := lvmtest.NewHost(t)
	paths := []string{"/dev/vdb", "/dev/vdc"}
	for _, path := range paths {
		h.AddDisk(path, 64*mib, "")
	}
	client := lvm.NewClient(h.Runner(), h.Flush)
	g, err := client.CreateGroup(t.Context(), lvm.GroupSpec{Name: "two", PoolUID: lvmtest.PoolUID, Devices: paths})
	if err != nil {
		t.Fatal(err)
	}
	backend := func() *lvm.Backend {
		b, err := lvm.NewBackend(lvm.NewClient(h.Runner(), h.Flush), lvm.Options{
			GroupName: g.Name, GroupUUID: g.UUID, Nodes: h.Nodes(), Seqno: h.Seqno, Devices: func() []string { return paths },
		})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := backend()
	rec, err := b.Create(t.Context(), spec(1, extent))
	if err != nil {
		t.Fatal(err)
	}
	h.SetMissing("/dev/vdc", true)
	h.Reboot()
	b = backend()
	if g, err := b.Group(t.Context()); err != nil || g.State() != lvm.StatePartial || g.MissingPVs != 1 {
		t.Fatalf("Group = %+v, %v", g, err)
	}
	if _, err := b.Locate(t.Context(), id(1), rec); err != nil {
		t.Errorf("Locate of a volume whose disk is there: %v", err)
	}
	if err := b.Delete(t.Context(), id(2), nil, volume.WipeZero); !errors.Is(err, volume.ErrPoolUnavailable) {
		t.Errorf("Delete of an unknown volume = %v, want ErrPoolUnavailable", err)
	}
	if err := b.Delete(t.Context(), id(1), &rec, volume.WipeZero); !errors.Is(err, volume.ErrPoolUnavailable) {
		t.Errorf("Delete = %v, want ErrPoolUnavailable", err)
	}
	h.SetMissing("/dev/vdc", false)
	if err := b.Delete(t.Context(), id(1), &rec, volume.WipeZero); err != nil {
		t.Errorf("Delete when the disk is back: %v", err)
	}
}

// A volume that somebody made a snapshot of, or that is not ours, stays.
func TestDeleteRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Edit(w.Name, func(e *lvmtest.Editor) { e.SetRole(id(2), "public", "origin", "thickorigin") })
	if err := w.backend.Delete(t.Context(), id(2), &w.rec, volume.WipeZero); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("Delete of an origin = %v, want ErrInUse", err)
	}
	w.Edit(w.Name, func(e *lvmtest.Editor) { e.SetRole(id(2), "public"); e.SetTags(id(2), "theirs") })
	if err := w.backend.Delete(t.Context(), id(2), &w.rec, volume.WipeZero); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("Delete of a volume without our tag = %v, want ErrIdentity", err)
	}
	if _, err := w.backend.Create(t.Context(), spec(2, extent)); !errors.Is(err, volume.ErrExists) {
		t.Errorf("Create over a volume without our tag = %v, want ErrExists", err)
	}
	// A group that was renamed is the same group.
	w.Edit(w.Name, func(e *lvmtest.Editor) { e.SetTags(id(2), lvm.TagVolume+"x"); e.Rename("renamed") })
	if err := w.backend.Delete(t.Context(), id(2), &w.rec, volume.WipeZero); err != nil {
		t.Errorf("Delete in a renamed group: %v", err)
	}
	if rec, err := w.backend.Create(t.Context(), spec(2, extent)); err != nil || rec.LVM.VGName != "renamed" {
		t.Errorf("Create in a renamed group = %+v, %v", rec.LVM, err)
	}
}

func TestToolMissing(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewVG(t, 16*extent)
	b, err := lvm.NewBackend(lvm.NewClient(noLVM{}, vg.Flush), lvm.Options{GroupName: vg.Name, GroupUUID: vg.UUID})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Create(t.Context(), spec(1, extent))
	if !errors.Is(err, volume.ErrToolMissing) || !strings.Contains(err.Error(), "install lvm2") {
		t.Errorf("Create = %v", err)
	}
}

type noLVM struct{}

func (noLVM) Run(context.Context, hostexec.Command) (hostexec.Result, error) {
	return hostexec.Result{}, fmt.Errorf("%w: install lvm2", volume.ErrToolMissing)
}

// A report that is not complete, as one is that somebody changed the group under, is asked
// for again; what stays incomplete proves nothing.
func TestIncompleteReportIsAskedForAgain(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewVG(t, 16*extent)
	b := vg.Backend()
	vg.Inject(lvmtest.Fault{Command: "pvs", Mode: lvmtest.Truncate})
	if _, err := b.List(t.Context()); err != nil {
		t.Errorf("List after one incomplete report: %v", err)
	}
	for range 3 {
		vg.Inject(lvmtest.Fault{Command: "pvs", Mode: lvmtest.Truncate})
	}
	vg.Edit(vg.Name, func(e *lvmtest.Editor) { e.Add("theirs", 1) })
	if found, err := b.List(t.Context()); err == nil {
		t.Errorf("List of reports that are never complete = %v", found)
	}
}
