// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// testPowerEnv names a disk, or a file that outlives a loss of power, on which the test below
// writes how far it is. It is as good as switching the machine off, again and again: the
// machine must be started anew, and the test with it, until it says that it is done.
//
//	go test -c ./pkg/lvm && BERTH_TEST_DISK=/dev/vdX BERTH_TEST_POWER=/dev/vdY ./lvm.test -test.run KernelPowerLoss -test.v
const testPowerEnv = "BERTH_TEST_POWER"

// powerState is what the test knows over losses of power, as an agent has its ledger.
type powerState struct {
	Group lvm.Group `json:"group"`
	// Thin is the second half of the test.
	Thin bool `json:"thin"`
	// Cut is at which moment the power goes in this round; Armed is false once it went.
	Cut   int  `json:"cut"`
	Armed bool `json:"armed"`
	// Done operations of this round, and what they made.
	Done    int                      `json:"done"`
	Records map[string]volume.Record `json:"records"`
	Sizes   map[string]int64         `json:"sizes"`
	Text    map[string]string        `json:"text"`
	// Losses of power that there were.
	Losses   int  `json:"losses"`
	Finished bool `json:"finished"`
}

const powerStateBytes = 64 << 10

func loadPowerState(t *testing.T, path string) (s powerState) {
	t.Helper()
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return powerState{}
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	raw := make([]byte, powerStateBytes)
	n, err := io.ReadFull(f, raw)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	raw = bytes.TrimRight(raw[:n], "\x00")
	if len(raw) == 0 {
		return powerState{}
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return s
}

func (s *powerState) save(t *testing.T, path string) {
	t.Helper()
	raw, err := json.Marshal(s)
	if err != nil || len(raw) > powerStateBytes {
		t.Fatalf("%d bytes: %v", len(raw), err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(append(raw, make([]byte, powerStateBytes-len(raw))...), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// powerRunner switches the machine off at a moment: before or after an lvm, counted over a
// round.
type powerRunner struct {
	host    *hostexec.Host
	moments int
	off     func(moment int)
}

func (r *powerRunner) Run(ctx context.Context, cmd hostexec.Command) (hostexec.Result, error) {
	r.off(r.moments)
	result, err := r.host.Run(ctx, cmd)
	r.off(r.moments + 1)
	r.moments += 2
	return result, err
}

// The power goes before and after each lvm of each operation on thick and on thin volumes.
// When the machine is back, the operation converges when it is repeated, all others can be
// done, and nothing that was written is lost.
func TestKernelPowerLoss(t *testing.T) {
	path := os.Getenv(testPowerEnv)
	if path == "" {
		t.Skipf("needs a machine to switch off, and a place that outlives it, named by %s", testPowerEnv)
	}
	s := loadPowerState(t, path)
	if s.Finished {
		t.Logf("done: %d losses of power", s.Losses)
		return
	}
	for {
		l := resumeLife(t, &s)
		s.save(t, path)
		runner := &powerRunner{host: l.host, off: func(moment int) {
			if !s.Armed || moment != s.Cut {
				return
			}
			s.Armed = false
			s.Losses++
			s.save(t, path)
			t.Logf("the power goes at moment %d (thin: %t, after %d operations)", s.Cut, s.Thin, s.Done)
			// Documentation/admin-guide/sysrq.rst: "immediately reboot the system without syncing".
			if err := os.WriteFile("/proc/sysrq-trigger", []byte("b"), 0); err != nil {
				t.Fatal(err)
			}
			select {}
		}}
		cut := l.power(&s, path, runner)
		if !cut {
			// The round had fewer moments than that.
			l.end()
			if s.Thin {
				s.Finished = true
				s.save(t, path)
				t.Logf("done: %d losses of power", s.Losses)
				return
			}
			s = powerState{Thin: true, Losses: s.Losses}
		} else {
			s.Cut, s.Armed, s.Done = s.Cut+1, true, 0
		}
	}
}

// resumeLife is a volume group with a volume that is not touched, made anew or found again.
func resumeLife(t *testing.T, s *powerState) *life {
	t.Helper()
	if s.Records != nil {
		host, err := hostexec.New(hostexec.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = host.Close() })
		l := &life{
			rig: &rig{disks: testDisks()[:1], layout: lvm.LayoutLinear, host: host, group: &s.Group, thin: s.Thin, countdown: -1},
			t:   t, runner: &badRunner{host: host}, sizes: s.Sizes, text: s.Text,
		}
		l.restart()
		return l
	}
	l := newLife(t, lvm.LayoutLinear, s.Thin)
	s.Group, s.Armed, s.Records, s.Sizes, s.Text = *l.group, true, map[string]volume.Record{}, l.sizes, l.text
	return l
}

// power does a round. It reports whether the power went in it, now or before this machine
// was started.
func (l *life) power(s *powerState, path string, runner *powerRunner) (cut bool) {
	l.t.Helper()
	ctx := l.t.Context()
	rec := func(n int) *volume.Record {
		r := s.Records[id(n)]
		return &r
	}
	copyOf := func(n int, sizeBytes int64, source volume.Source) volume.Spec {
		wish := spec(n, sizeBytes)
		wish.Source, wish.Fresh = &source, true
		return wish
	}
	type operation struct {
		what string
		run  func(b *lvm.Backend) (volume.Record, error)
		// makes is the volume, 0 for none; ends is what is gone afterwards; like is whose text it has.
		makes, ends, like int
		snapshot          bool
	}
	operations := []operation{
		{what: "create", makes: 1, run: func(b *lvm.Backend) (volume.Record, error) { return b.Create(ctx, spec(1, 8*mib)) }},
		{what: "snapshot", makes: 5, like: 1, snapshot: true, run: func(b *lvm.Backend) (volume.Record, error) {
			return b.Snapshot(ctx, volume.SnapshotSpec{ID: id(5), Name: "snap-5", VolumeID: id(1), Volume: *rec(1)})
		}},
		{what: "restore", makes: 2, like: 1, run: func(b *lvm.Backend) (volume.Record, error) {
			return b.Create(ctx, copyOf(2, 12*mib, volume.Source{ID: id(5), Record: *rec(5), Snapshot: true}))
		}},
		{what: "clone", makes: 3, like: 1, run: func(b *lvm.Backend) (volume.Record, error) {
			return b.Create(ctx, copyOf(3, 8*mib, volume.Source{ID: id(1), Record: *rec(1)}))
		}},
		{what: "delete snapshot", ends: 5, snapshot: true, run: func(b *lvm.Backend) (volume.Record, error) {
			return volume.Record{}, b.DeleteSnapshot(ctx, id(5), rec(5))
		}},
		{what: "grow", makes: 1, run: func(b *lvm.Backend) (volume.Record, error) { return b.Grow(ctx, id(1), *rec(1), 16*mib) }},
		{what: "delete", ends: 1, run: func(b *lvm.Backend) (volume.Record, error) {
			return volume.Record{}, b.Delete(ctx, id(1), rec(1), volume.WipeSignatures)
		}},
		{what: "delete a copy", ends: 2, run: func(b *lvm.Backend) (volume.Record, error) {
			return volume.Record{}, b.Delete(ctx, id(2), rec(2), volume.WipeNone)
		}},
		{what: "delete the other", ends: 3, run: func(b *lvm.Backend) (volume.Record, error) {
			return volume.Record{}, b.Delete(ctx, id(3), rec(3), volume.WipeNone)
		}},
	}
	name := func(o operation, n int) string {
		if o.snapshot {
			return "snap-" + id(n)
		}
		return id(n)
	}
	if s.Done > 0 || !s.Armed {
		l.compareButFor("after the power was back", operations[s.Done].makes, operations[s.Done].ends)
	}
	for ; s.Done < len(operations); s.Done++ {
		o := operations[s.Done]
		b, err := lvm.NewBackend(lvm.NewClient(runner, lvm.DiskFlusher("/")), lvm.Options{
			GroupName: l.group.Name, GroupUUID: l.group.UUID, Devices: func() []string { return l.disks }, Layout: l.layout, Thin: l.policy(),
			Snapshots: func() lvm.SnapshotPolicy {
				return lvm.SnapshotPolicy{InitialPercent: 100, ThresholdPercent: 70, ExtendPercent: 20}
			},
		})
		if err != nil {
			l.t.Fatal(err)
		}
		made, err := o.run(b)
		if err != nil {
			l.t.Fatalf("%s, moment %d (armed: %t): %v", o.what, s.Cut, s.Armed, err)
		}
		l.restart()
		switch {
		case o.ends != 0:
			l.gone(name(o, o.ends))
			delete(s.Records, id(o.ends))
		default:
			s.Records[id(o.makes)] = made
			l.made(name(o, o.makes), made)
			if o.like != 0 {
				l.text[id(o.makes)] = l.text[id(o.like)]
			} else if o.what == "create" {
				l.write(o.makes, made, fmt.Sprintf("round %d", s.Cut))
			}
		}
		l.compare(o.what)
		s.Done++
		s.save(l.t, path)
		s.Done--
	}
	return !s.Armed
}

// compareButFor checks that what is in the middle of an operation is all that may differ.
func (l *life) compareButFor(what string, numbers ...int) {
	l.t.Helper()
	found, err := l.b.List(l.t.Context())
	if err != nil {
		l.t.Fatalf("%s: %v", what, err)
	}
	there := map[string]volume.Record{}
	for _, f := range found {
		there[f.ID] = f.Record
	}
	changing := map[string]bool{}
	for _, n := range numbers {
		changing[id(n)] = true
	}
	for name := range l.sizes {
		if changing[name] || len(name) != len(id(1)) {
			continue
		}
		rec, ok := there[name]
		if !ok {
			l.t.Fatalf("%s: %s is gone", what, name)
		}
		loc, err := l.b.Locate(l.t.Context(), name, rec)
		if err != nil {
			l.t.Fatalf("%s: locate %s: %v", what, name, err)
		}
		l.wantText(what, name, loc)
	}
}

// end removes the volume group.
func (l *life) end() {
	l.t.Helper()
	l.lvm(l.t, "lvremove", "--yes", l.group.Name)
	if err := lvm.NewClient(l.host, lvm.DiskFlusher("/")).RemoveGroup(context.Background(), l.group.UUID, realUID, nil); err != nil {
		l.t.Fatal(err)
	}
}
