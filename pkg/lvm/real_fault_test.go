// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// misbehaviour is a program in the place of lvm, with the real one at its hand. It gets
// lvm's standard input, and its report is what comes out of descriptor 3.
type misbehaviour struct {
	name, script string
	// hangs: it says on its standard output that it does, and goes only when it is killed.
	hangs bool
}

const changing = `^(lvcreate|lvextend|lvremove|lvchange|lvconvert)`

var misbehaviours = []misbehaviour{
	{name: "fails before", script: `echo "  Something is wrong." >&2; exit 5`},
	{name: "dies before", script: `kill -KILL $$`},
	{name: "hangs before", script: `echo hanging; sleep 1000`, hangs: true},
	{name: "fails after", script: `lvm "$@"; exit 5`},
	{name: "dies after", script: `lvm "$@"; kill -KILL $$`},
	{name: "hangs after", script: `lvm "$@"; echo hanging; sleep 1000`, hangs: true},
	{name: "does nothing and says nothing", script: `cat >/dev/null`},
	{name: "does nothing and reports", script: `grep -vE '` + changing + `' | lvm "$@"`},
	{name: "does all and says nothing", script: `lvm "$@" 3>/dev/null`},
	{name: "ends its report in the middle", script: `lvm "$@" 3>&1 >/dev/null | head -c 300 >&3`},
	{name: "has rubbish before its report", script: `echo "{}" >&3; lvm "$@"`},
	{name: "reports another group", script: `lvm "$@" 3>&1 >/dev/null | sed "s/LVM2_VG_UUID='....../LVM2_VG_UUID='AAAAAA/" >&3`},
	{name: "reports what was", script: `input=$(cat); echo "$input" | grep -vE '` + changing + `' | lvm "$@"; echo "$input" | lvm "$@" 3>/dev/null`},
	{name: "reports half the size", script: `lvm "$@" 3>&1 >/dev/null | sed "s/LVM2_LV_SIZE='8388608'/LVM2_LV_SIZE='4194304'/" >&3`},
}

// badRunner runs a misbehaviour in the place of the n-th lvm from now.
type badRunner struct {
	host *hostexec.Host

	mu   sync.Mutex
	in   int
	does *misbehaviour
	// used is how often it was run.
	used int
	// calls since it was armed, and the most that an operation had with nothing wrong.
	calls, most int
}

// arm has the n-th lvm from now misbehave, 0 being the next.
func (r *badRunner) arm(n int, m misbehaviour) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.in, r.does, r.used, r.calls = n, &m, 0, 0
}

// disarm reports whether it came to that.
func (r *badRunner) disarm() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.does = nil
	if r.in < -1 && r.used == 0 {
		r.most = max(r.most, r.calls)
	}
	return r.used > 0
}

func (r *badRunner) next() *misbehaviour {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.does == nil {
		return nil
	}
	r.calls++
	r.in--
	if r.in != -1 {
		return nil
	}
	r.used++
	return r.does
}

func (r *badRunner) Run(ctx context.Context, cmd hostexec.Command) (hostexec.Result, error) {
	m := r.next()
	if m == nil {
		return r.host.Run(ctx, cmd)
	}
	cmd.Args = append([]string{"-c", m.script, cmd.Name}, cmd.Args...)
	cmd.Name = "sh"
	if !m.hangs {
		return r.host.Run(ctx, cmd)
	}
	return r.hang(ctx, cmd)
}

// hang ends the process by its context when it says that it hangs, which stands for its
// deadline.
func (r *badRunner) hang(ctx context.Context, cmd hostexec.Command) (hostexec.Result, error) {
	dir, err := os.MkdirTemp("", "berth-fault-")
	if err != nil {
		return hostexec.Result{}, err
	}
	defer os.RemoveAll(dir)
	fifo := filepath.Join(dir, "hanging")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return hostexec.Result{}, err
	}
	cmd.Args[1] = strings.Replace(cmd.Args[1], "echo hanging", "echo hanging >"+fifo, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		if f, err := os.Open(fifo); err == nil {
			_, _ = io.Copy(io.Discard, f)
			_ = f.Close()
		}
	}()
	return r.host.Run(ctx, cmd)
}

// life is a place on real disks and a model of what is in it.
type life struct {
	*rig
	t      *testing.T
	runner *badRunner
	b      *lvm.Backend
	// sizes of what must be there by the names of the logical volumes, and what it holds.
	sizes map[string]int64
	text  map[string]string
}

func newLife(t *testing.T, layout lvm.Layout, thin bool) *life {
	t.Helper()
	l := &life{rig: newRigOf(t, layout), t: t, sizes: map[string]int64{}, text: map[string]string{}}
	l.thin = thin
	l.runner = &badRunner{host: l.host}
	l.restart()
	if _, err := l.b.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	rec, err := l.b.Create(t.Context(), spec(9, 8*mib))
	if err != nil {
		t.Fatal(err)
	}
	l.made(id(9), rec)
	l.write(9, rec, "the bystander")
	return l
}

// restart forgets what was seen, as an agent that starts has.
func (l *life) restart() {
	l.t.Helper()
	b, err := lvm.NewBackend(lvm.NewClient(l.runner, lvm.DiskFlusher("/")), lvm.Options{
		GroupName: l.group.Name, GroupUUID: l.group.UUID, Devices: func() []string { return l.disks }, Layout: l.layout, Thin: l.policy(),
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.b = b
}

func (l *life) made(name string, rec volume.Record) { l.sizes[name] = rec.SizeBytes }

func (l *life) device(n int, rec volume.Record) string {
	l.t.Helper()
	loc, err := l.b.Locate(l.t.Context(), id(n), rec)
	if err != nil {
		l.t.Fatalf("locate %d: %v", n, err)
	}
	return loc.Device
}

// write fills the volume's ends.
func (l *life) write(n int, rec volume.Record, text string) {
	l.t.Helper()
	f, err := os.OpenFile(l.device(n, rec), os.O_RDWR, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{0, 8*mib - 512} {
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			l.t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		l.t.Fatal(err)
	}
	l.text[id(n)] = text
}

// act runs an operation of which the n-th lvm misbehaves, and repeats it without that. It
// reports whether there was an n-th.
func (l *life) act(what string, n int, m misbehaviour, run func() error) bool {
	l.t.Helper()
	l.runner.arm(n, m)
	err := run()
	came := l.runner.disarm()
	for _, claim := range []error{volume.ErrNotFound, volume.ErrNoSpace, volume.ErrInvalid, volume.ErrIdentity, volume.ErrExists} {
		if errors.Is(err, claim) && !ofTheGroup(err) {
			l.t.Errorf("%s: a fault was taken for knowledge: %v", what, err)
		}
	}
	if !came && err != nil {
		l.t.Fatalf("%s: nothing was wrong, and yet: %v", what, err)
	}
	l.wantNoProcess(what)
	for range 2 {
		if again := run(); again != nil {
			l.t.Fatalf("%s, repeated after %v: %v", what, err, again)
		}
	}
	return came
}

// wantNoProcess checks that nothing goes on of what was killed.
func (l *life) wantNoProcess(what string) {
	l.t.Helper()
	// It was sent SIGKILL at the latest when Run returned; the kernel may take a moment.
	deadline, tick := time.After(5*time.Second), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for {
		left := processes(l.t)
		if len(left) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			l.t.Fatalf("%s: %v still run", what, left)
		}
	}
}

// processes returns the command lines of lvm and of what stood for it.
func processes(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		words := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		if filepath.Base(words[0]) == "lvm" || slices.Equal(words, []string{"sleep", "1000"}) {
			found = append(found, strings.Join(words, " "))
		}
	}
	return found
}

// compare compares the model with what lvm, the kernel and the volumes' bytes say.
func (l *life) compare(what string) {
	l.t.Helper()
	out, err := exec.CommandContext(l.t.Context(), "lvm", "lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "lv_name,lv_size", "--separator", " ", l.group.Name).Output()
	if err != nil {
		l.t.Fatalf("%s: lvs: %v", what, err)
	}
	have := map[string]int64{}
	for line := range strings.Lines(string(out)) {
		var name string
		var size int64
		if _, err := fmt.Sscan(line, &name, &size); err != nil {
			l.t.Fatalf("%s: lvs says %q", what, line)
		}
		if name != "thin" {
			have[name] = size
		}
	}
	if !equal(have, l.sizes) {
		l.t.Fatalf("%s: there is %v, want %v", what, have, l.sizes)
	}
	found, err := l.b.List(l.t.Context())
	if err != nil {
		l.t.Fatalf("%s: %v", what, err)
	}
	for _, f := range found {
		loc, err := l.b.Locate(l.t.Context(), f.ID, f.Record)
		if err != nil {
			l.t.Fatalf("%s: locate %s: %v", what, f.ID, err)
		}
		if loc.SizeBytes != l.sizes[f.ID] {
			l.t.Fatalf("%s: %s is %d bytes large, want %d", what, f.ID, loc.SizeBytes, l.sizes[f.ID])
		}
		l.wantText(what, f.ID, loc)
	}
	l.wantNodes(what)
}

func (l *life) wantText(what, id string, loc volume.Location) {
	l.t.Helper()
	f, err := os.Open(loc.Device)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	want := []byte(l.text[id])
	for _, at := range []int64{0, 8*mib - 512} {
		have := make([]byte, len(want))
		if _, err := f.ReadAt(have, at); err != nil {
			l.t.Fatal(err)
		}
		if !bytes.Equal(have, want) {
			l.t.Fatalf("%s: %s holds %q at %d, want %q", what, id, have, at, want)
		}
	}
}

// wantNodes checks that device-mapper holds nothing of the group that the model does not
// know, and that nothing is suspended.
func (l *life) wantNodes(what string) {
	l.t.Helper()
	out, err := exec.CommandContext(l.t.Context(), "dmsetup", "info", "--columns", "--noheadings", "--separator", " ", "-o", "name,suspended").Output()
	if err != nil {
		l.t.Fatalf("%s: dmsetup: %v", what, err)
	}
	prefix := strings.ReplaceAll(l.group.Name, "-", "--") + "-"
	for line := range strings.Lines(string(out)) {
		var full, state string
		if _, err := fmt.Sscan(line, &full, &state); err != nil {
			continue // "No devices found"
		}
		name, ours := strings.CutPrefix(full, prefix)
		if !ours {
			continue
		}
		// A snapshot of a thick volume is of two devices, and so is its origin then.
		name, _ = strings.CutSuffix(name, "-real")
		name, _ = strings.CutSuffix(name, "-cow")
		name = strings.ReplaceAll(name, "--", "-")
		if _, known := l.sizes[name]; !known && name != "thin" && !strings.HasPrefix(name, "thin-") && !strings.HasPrefix(name, "thin_") {
			l.t.Fatalf("%s: device-mapper has %s", what, full)
		}
		if state != "Active" {
			l.t.Fatalf("%s: %s is %s", what, full, state)
		}
	}
}

// In the place of lvm a program runs that fails, hangs, dies or lies, before or after it had
// lvm do its work, at each lvm of each operation. Repeated, the operation converges.
func TestKernelFaultMatrix(t *testing.T) { faultsOnKernel(t, lvm.LayoutLinear, false) }

func TestKernelFaultMatrixStriped(t *testing.T) { faultsOnKernel(t, lvm.LayoutStriped, false) }

func TestKernelFaultMatrixThin(t *testing.T) { faultsOnKernel(t, lvm.LayoutLinear, true) }

func faultsOnKernel(t *testing.T, layout lvm.Layout, thin bool) {
	l := newLife(t, layout, thin)
	l.live("nothing is wrong", -1, misbehaviour{})
	if l.runner.most < 2 {
		t.Fatalf("an operation has %d lvm", l.runner.most)
	}
	for _, m := range misbehaviours {
		for n := range l.runner.most {
			t.Run(fmt.Sprintf("%s at lvm %d", m.name, n), func(t *testing.T) {
				l.t = t
				if came := l.live(t.Name(), n, m); !came {
					t.Error("no operation came to it")
				}
				l.restart()
				l.compare("in the end")
				if out, err := exec.CommandContext(t.Context(), "lvm", "vgck", l.group.Name).CombinedOutput(); err != nil {
					t.Fatalf("vgck: %v: %s", err, out)
				}
			})
			if t.Failed() {
				return
			}
		}
	}
}

// live goes through all that a volume sees, with an n-th lvm that misbehaves in each
// operation. It reports whether an operation had that many.
func (l *life) live(what string, n int, m misbehaviour) (came bool) {
	l.t.Helper()
	ctx := l.t.Context()
	// Each operation looks first, as after a start of the agent.
	act := func(verb string, run func() error) {
		l.t.Helper()
		l.restart()
		where := verb + ": " + what
		came = l.act(where, n, m, run) || came
		l.restart()
	}
	var rec volume.Record
	act("create", func() error { return keep(&rec)(l.b.Create(ctx, spec(1, 8*mib))) })
	l.made(id(1), rec)
	l.write(1, rec, what)
	if l.thin {
		l.copies(what, rec, act)
	}
	act("grow", func() error { return keep(&rec)(l.b.Grow(ctx, id(1), rec, 16*mib)) })
	l.made(id(1), rec)
	l.compare("grow: " + what)
	act("delete", func() error { return l.b.Delete(ctx, id(1), &rec, volume.WipeSignatures) })
	l.gone(id(1))
	l.compare("delete: " + what)
	return came
}

// keep keeps the record of a call that succeeded.
func keep(rec *volume.Record) func(volume.Record, error) error {
	return func(made volume.Record, err error) error {
		if err == nil {
			*rec = made
		}
		return err
	}
}

func (l *life) gone(names ...string) {
	for _, name := range names {
		delete(l.sizes, name)
		delete(l.text, name)
	}
}

// copies makes a snapshot, a volume of it and one of its origin, and deletes them.
func (l *life) copies(what string, origin volume.Record, act func(verb string, run func() error)) {
	l.t.Helper()
	ctx := l.t.Context()
	var snapshot, restored, cloned volume.Record
	act("snapshot", func() error {
		return keep(&snapshot)(l.b.Snapshot(ctx, volume.SnapshotSpec{ID: id(5), Name: "snap-5", VolumeID: id(1), Volume: origin}))
	})
	l.made("snap-"+id(5), snapshot)
	copyOf := func(n int, sizeBytes int64, source volume.Source) volume.Spec {
		wish := spec(n, sizeBytes)
		wish.Source, wish.Fresh = &source, true
		return wish
	}
	act("restore", func() error {
		return keep(&restored)(l.b.Create(ctx, copyOf(2, 12*mib, volume.Source{ID: id(5), Record: snapshot, Snapshot: true})))
	})
	l.made(id(2), restored)
	l.text[id(2)] = l.text[id(1)]
	act("clone", func() error {
		return keep(&cloned)(l.b.Create(ctx, copyOf(3, 8*mib, volume.Source{ID: id(1), Record: origin})))
	})
	l.made(id(3), cloned)
	l.text[id(3)] = l.text[id(1)]
	l.compare("copies: " + what)
	act("delete snapshot", func() error { return l.b.DeleteSnapshot(ctx, id(5), &snapshot) })
	for n, rec := range map[int]*volume.Record{2: &restored, 3: &cloned} {
		if err := l.b.Delete(ctx, id(n), rec, volume.WipeNone); err != nil {
			l.t.Fatalf("%s: delete a copy: %v", what, err)
		}
	}
	l.gone("snap-"+id(5), id(2), id(3))
	l.compare("delete snapshot: " + what)
}
