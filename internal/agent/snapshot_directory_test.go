// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/volume"
)

// copiedDirectoryHost is a node with a hostpath pool whose filesystem has reflinks.
type copiedDirectoryHost struct {
	*copyHost

	directories *hostpath.Backend
	root        string
	// written and noReflinks are what is told to the backend.
	written, noReflinks bool
	// cloning, if not nil, is called for each file.
	cloning func()
}

func inDirectory(lv *v1alpha1.LocalVolume) {
	lv.Spec.Mode, lv.Spec.Pool, lv.Spec.FSType = v1alpha1.ModeHostpath, "dirs", ""
}

func ofDirectory(s *v1alpha1.LocalSnapshot) { s.Spec.Pool = "dirs" }

func newCopiedDirectoryHost(t *testing.T, objects ...client.Object) *copiedDirectoryHost {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	h := &copiedDirectoryHost{root: filepath.Join(t.TempDir(), "pool"), copyHost: &copyHost{host: &host{
		t: t, killer: &killer{left: -1}, ledgerDir: t.TempDir(), machineID: machine,
		api: fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
			WithStatusSubresource(&v1alpha1.LocalVolume{}, &v1alpha1.LocalSnapshot{}).Build(),
	}}}
	h.startDirectories()
	return h
}

func (h *copiedDirectoryHost) startDirectories() {
	h.t.Helper()
	h.start()
	const poolUID = "11111111-1111-4111-8111-111111111111"
	where := hostpath.Where{Root: h.root}
	id, err := hostpath.Init(h.t.Context(), where, poolUID)
	if err != nil {
		h.t.Fatal(err)
	}
	h.directories, err = hostpath.New(hostpath.Options{
		Where: where, RootID: id, PoolUID: poolUID, Log: slog.New(slog.DiscardHandler),
		InUse:   func(string) (bool, error) { return false, nil },
		Written: func(string) (bool, error) { return h.written, nil },
		Clone: func(to, from int) error {
			if h.noReflinks {
				return unix.EOPNOTSUPP
			}
			if h.cloning != nil {
				h.cloning()
			}
			var content [64]byte
			n, err := unix.Pread(from, content[:], 0)
			if err == nil {
				_, err = unix.Pwrite(to, content[:n], 0)
			}
			return err
		},
		Room: func() (int64, int64, error) { return 1 << 30, 1 << 30, nil },
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.backends = NewBackends(nil)
	h.backends.Set(PoolBackend{Name: "dirs", Mode: volume.ModeHostpath, Backend: h.directories})
	h.backends.SetSynced()
	carver := h.agent.Carver
	carver.Backends = h.backends
	carver.Copies = &Copies{Cache: h.api, Ledger: h.agent.Ledger, Locks: carver.Locks, MachineID: machine}
	h.snapshots = &SnapshotReconciler{Client: h.agent.Client, Backends: h.backends, Ledger: h.agent.Ledger, MachineID: machine, Locks: carver.Locks}
}

// file is one of a volume, or of the snapshot.
func (h *copiedDirectoryHost) file(directory string) string {
	return filepath.Join(h.root, directory, "file")
}

func (h *copiedDirectoryHost) wantContent(directory, want string) {
	h.t.Helper()
	if got, err := os.ReadFile(h.file(directory)); err != nil || string(got) != want {
		h.t.Fatalf("%s holds %q, %v, want %q", directory, got, err, want)
	}
}

// A directory is snapshotted, restored and cloned, and deleted in any order.
func TestDirectoryIsCopied(t *testing.T) {
	t.Parallel()
	h := newCopiedDirectoryHost(t, localVolume(inDirectory))
	h.settleCopies()
	if err := os.WriteFile(h.file("volumes/"+lvUID), []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.create(localSnapshot(ofDirectory))
	h.settleCopies()
	s := h.snapshot()
	if !isTaken(s) || s.Status.LVM != nil || s.Status.Hostpath == nil || s.Status.Hostpath.Directory != "snapshots/"+snapUID ||
		s.Status.RestoreSize.Value() != 8*mib || s.Status.VolumeMode != v1alpha1.VolumeFilesystem {
		t.Fatalf("the snapshot is %+v", s.Status)
	}
	if err := os.WriteFile(h.file("volumes/"+lvUID), []byte("after"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.create(copyVolume(v1alpha1.SourceSnapshot, inDirectory))
	h.settleCopies()
	if lv := h.copied(); !isReady(lv) || lv.Status.Capacity.Value() != 16*mib {
		t.Fatalf("the restored volume is %+v", lv.Status)
	}
	h.wantContent("volumes/"+copyUID, "before")
	// An agent of before this knows no directory that began as a copy.
	if e, err := h.agent.Ledger.Get(copyUID); err != nil || e.Copied || e.State != ledger.Ready {
		t.Fatalf("the ledger has %+v, %v", e, err)
	}

	if err := h.api.Delete(t.Context(), h.get()); err != nil {
		t.Fatal(err)
	}
	h.settleCopies()
	if err := h.api.Delete(t.Context(), h.snapshot()); err != nil {
		t.Fatal(err)
	}
	h.settleCopies()
	h.startDirectories()
	h.settleCopies()
	h.wantContent("volumes/"+copyUID, "before")
	snapshots, err := h.directories.ListSnapshots(t.Context())
	if err != nil || len(snapshots) > 0 || h.snapshot() != nil || h.get() != nil {
		t.Fatalf("left are %v, %v", snapshots, err)
	}
}

// A tree that is whole when the agent is killed is a volume, whatever became of its source.
func TestCopiedDirectoryOutlivesItsSource(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		h := newCopiedDirectoryHost(t, localVolume(inDirectory))
		h.settleCopies()
		if err := os.WriteFile(h.file("volumes/"+lvUID), []byte("before"), 0o600); err != nil {
			t.Fatal(err)
		}
		h.create(copyVolume(v1alpha1.SourceVolume, inDirectory))
		h.killer.arm(n)
		for range 6 {
			_ = h.reconcileCopies()
		}
		died := h.killer.died()
		if err := h.api.Delete(t.Context(), h.get()); err != nil {
			t.Fatal(err)
		}
		h.startDirectories()
		h.settleCopies()
		switch lv := h.copied(); {
		case isReady(lv):
			h.wantContent("volumes/"+copyUID, "before")
		case !isFinal(lv):
			t.Fatalf("step %d: it is neither made nor refused: %+v", n, lv.Status)
		}
		if !died {
			if n < 2 {
				t.Fatalf("only %d steps", n)
			}
			return
		}
	}
}

// What cannot be copied is refused for good, with what is to be done, and leaves nothing.
func TestDirectoryIsNotCopied(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(h *copiedDirectoryHost)
		says   string
	}{
		"a pod can write to it": {func(h *copiedDirectoryHost) { h.written = true }, "stop the pods"},
		"no reflinks":           {func(h *copiedDirectoryHost) { h.noReflinks = true }, "has no reflinks"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newCopiedDirectoryHost(t, localVolume(inDirectory))
			h.settleCopies()
			tc.change(h)
			h.create(localSnapshot(ofDirectory))
			h.create(copyVolume(v1alpha1.SourceVolume, inDirectory))
			h.settleCopies()
			s, lv := h.snapshot(), h.copied()
			of := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.LocalSnapshotReady)
			if of == nil || !isFinalSnapshot(s) || !strings.Contains(of.Message, tc.says) {
				t.Errorf("of the snapshot it says %+v", of)
			}
			if c := meta.FindStatusCondition(lv.Status.Conditions, v1alpha1.LocalVolumeReady); c == nil || !isFinal(lv) || !strings.Contains(c.Message, tc.says) {
				t.Errorf("of the clone it says %+v", c)
			}
			volumes, err := h.directories.List(t.Context())
			snapshots, snapErr := h.directories.ListSnapshots(t.Context())
			if err := errors.Join(err, snapErr); err != nil || len(volumes) != 1 || len(snapshots) != 0 {
				t.Errorf("left are %v and %v, %v", volumes, snapshots, err)
			}
			if _, err := h.agent.Ledger.Get(copyUID); !errors.Is(err, ledger.ErrNotFound) {
				t.Errorf("in the ledger: %v", err)
			}
			if err := h.api.Delete(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			h.settleCopies()
			if h.snapshot() != nil {
				t.Error("a snapshot that was refused cannot be deleted")
			}
		})
	}
}

// A group is one instant, which files are not.
func TestDirectoriesHaveNoGroupSnapshots(t *testing.T) {
	t.Parallel()
	h := newCopiedDirectoryHost(t, localVolume(inDirectory), localSnapshot(ofDirectory, func(s *v1alpha1.LocalSnapshot) {
		s.Spec.Group = &v1alpha1.SnapshotGroup{Name: "together", Members: 1}
	}))
	h.settleCopies()
	if !isFinalSnapshot(h.snapshot()) {
		t.Errorf("it is %+v", h.snapshot().Status)
	}
}

// No pod gets a volume while its files are copied, and a copy that takes long holds up nothing
// else; a snapshot that is deleted meanwhile ends it.
func TestDirectoryIsHeldWhileItIsCopied(t *testing.T) {
	t.Parallel()
	h := newCopiedDirectoryHost(t, localVolume(inDirectory))
	h.settleCopies()
	if err := os.WriteFile(h.file("volumes/"+lvUID), []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	began, goOn := make(chan struct{}), make(chan struct{})
	first := true
	if _, err := h.directories.Copies(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.cloning = func() {
		if first {
			first = false
			close(began)
			<-goOn
		}
	}
	s := localSnapshot(ofDirectory)
	done := make(chan error, 1)
	go func() { _, err := h.snapshots.make(t.Context(), s); done <- err }()
	<-began
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if unlock, err := h.agent.Carver.Locks.Lock(ctx, lvName); err == nil {
		unlock()
		t.Error("the volume can be used while it is copied")
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	h.wantContent("snapshots/"+snapUID, "before")
}

// fullQueue has others copy first, each time that something asks for a turn.
type fullQueue struct {
	*hostpath.Backend

	await func(ctx context.Context) error
	asked map[string]bool
}

func (q *fullQueue) turn(id string, noWait bool) error {
	if !noWait || q.asked[id] {
		return nil
	}
	q.asked[id] = true
	return fmt.Errorf("copy: %w", &volume.NoTurn{Await: q.await})
}

func (q *fullQueue) Create(ctx context.Context, spec volume.Spec) (volume.Record, error) {
	if spec.Source != nil {
		if err := q.turn(spec.ID, spec.Source.NoWait); err != nil {
			return volume.Record{}, err
		}
	}
	return q.Backend.Create(ctx, spec)
}

func (q *fullQueue) Snapshot(ctx context.Context, spec volume.SnapshotSpec) (volume.Record, error) {
	if err := q.turn(spec.ID, spec.NoWait); err != nil {
		return volume.Record{}, err
	}
	return q.Backend.Snapshot(ctx, spec)
}

// Pods get a volume while a copy of it waits for other copies.
func TestDirectoryIsNotHeldWhileItsCopyWaits(t *testing.T) {
	t.Parallel()
	h := newCopiedDirectoryHost(t, localVolume(inDirectory))
	h.settleCopies()
	waits := 0
	queue := &fullQueue{Backend: h.directories, asked: map[string]bool{}, await: func(context.Context) error {
		waits++
		unlock, free := h.agent.Carver.Locks.TryLock(lvName)
		if !free {
			t.Error("the source is locked")
			return nil
		}
		unlock()
		return nil
	}}
	h.backends.Set(PoolBackend{Name: "dirs", Mode: volume.ModeHostpath, Backend: queue})
	if err := os.WriteFile(h.file("volumes/"+lvUID), []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.create(localSnapshot(ofDirectory))
	h.create(copyVolume(v1alpha1.SourceVolume, inDirectory))
	h.settleCopies()
	h.wantContent("snapshots/"+snapUID, "before")
	h.wantContent("volumes/"+copyUID, "before")
	if waits != 2 || !isReady(h.copied()) || !isTaken(h.snapshot()) {
		t.Errorf("waited %d times: %+v, %+v", waits, h.copied().Status, h.snapshot().Status)
	}
}
