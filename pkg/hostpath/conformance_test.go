// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

const (
	poolUID     = "11111111-1111-4111-8111-111111111111"
	volumeBytes = 10 << 20
	reserve     = 3 << 20
)

func TestConformance(t *testing.T) {
	t.Parallel()
	conform(t, newPool)
}

// The same where files can share their blocks, with and without quotas and paths.
func TestConformanceWithCopies(t *testing.T) {
	t.Parallel()
	t.Run("plain", func(t *testing.T) { conform(t, newCopyingPool) })
	t.Run("quotas and names", func(t *testing.T) {
		skipUnderRace(t)
		conform(t, func(t *testing.T) *pool {
			q := newQuotas(t.TempDir())
			return startPool(t, &pool{root: path.Join(q.top, "pool"), used: map[string]bool{}, quotas: q, named: true, copies: true})
		})
	})
}

// The same where volumes are subvolumes.
func TestConformanceWithSubvolumes(t *testing.T) {
	t.Parallel()
	skipUnderRace(t)
	conform(t, func(t *testing.T) *pool { p := newSubvolumePool(t); p.named = true; return p })
}

func newSubvolumePool(t *testing.T) *pool {
	t.Helper()
	return startPool(t, &pool{root: path.Join(t.TempDir(), "pool"), used: map[string]bool{}, copies: true, subvolumes: &subvolumes{of: map[uint64]bool{}}})
}

func newCopyingPool(t *testing.T) *pool {
	t.Helper()
	return startPool(t, &pool{root: path.Join(t.TempDir(), "pool"), used: map[string]bool{}, copies: true})
}

// The same where what was deleted is kept for a while: it is as gone as without, and is
// removed without a trace when its time has come, wherever the process was killed.
func TestConformanceWithRetention(t *testing.T) {
	t.Parallel()
	skipUnderRace(t)
	conform(t, newRetainingPool)
}

func newRetainingPool(t *testing.T) *pool {
	t.Helper()
	return startPool(t, &pool{root: path.Join(t.TempDir(), "pool"), used: map[string]bool{}, retainFor: retainFor})
}

const retainFor = 72 * time.Hour

// The same where volumes lie at paths of their own, two levels deep, and some are kept.
func TestConformanceWithNames(t *testing.T) {
	t.Parallel()
	conform(t, newNamingPool)
}

func newNamingPool(t *testing.T) *pool {
	t.Helper()
	q := newQuotas(t.TempDir())
	return startPool(t, &pool{root: path.Join(q.top, "pool"), used: map[string]bool{}, quotas: q, retainFor: retainFor, named: true})
}

func skipUnderRace(t *testing.T) {
	t.Helper()
	if raceDetector {
		t.Skip("the race detector has seen the same without what this filesystem can do besides")
	}
}

// asking is a backend that is asked for more than the suite does.
type asking struct {
	*hostpath.Backend
	p *pool
}

func (a asking) Create(ctx context.Context, spec volume.Spec) (volume.Record, error) {
	spec.RetainFor, spec.Claim = a.p.retainFor, "shop/db"
	if a.p.named {
		spec.Directory = "shop/of/" + spec.Name
	}
	return a.Backend.Create(ctx, spec)
}

func conform(t *testing.T, newPool func(*testing.T) *pool) {
	t.Helper()
	canCopy := false
	t.Run("probe", func(t *testing.T) { canCopy = newPool(t).copies }) // its place is gone before the next one is made
	volumetest.Run(t, volumetest.Harness{
		Access:      []volume.Access{volume.AccessFilesystem},
		CanGrow:     true,
		CanSnapshot: canCopy,
		New: func(t *testing.T) *volumetest.Place {
			p := newPool(t)
			return &volumetest.Place{
				Backend:     asking{p.backend, p},
				VolumeBytes: volumeBytes,
				Volumes:     5,
				Reboot: func(t *testing.T) volume.Backend {
					p.restart(t)
					return asking{p.backend, p}
				},
				Settle: p.settle,
				Tamper: func(t *testing.T, _ string, rec volume.Record) {
					dir := path.Join(p.root, rec.Hostpath.Directory)
					must(t, os.Rename(dir, path.Join(p.root, "elsewhere")))
					must(t, os.Symlink(path.Join(p.root, "elsewhere"), dir))
				},
				Vanish: func(t *testing.T, _ string, rec volume.Record) {
					must(t, os.RemoveAll(path.Join(p.root, rec.Hostpath.Directory)))
				},
				Blind: func(t *testing.T) func() {
					marker := path.Join(p.root, ".berth/root.json")
					must(t, os.Rename(marker, marker+".away"))
					return func() { must(t, os.Rename(marker+".away", marker)) }
				},
				Hold: func(_ *testing.T, loc volume.Location) func() {
					p.hold(loc.Directory, true)
					return func() { p.hold(loc.Directory, false) }
				},
				CrashAt: p.crashAt,
			}
		},
	})
}

// pool is a root and the process over it.
type pool struct {
	// holder is called whenever it is looked for who has a directory that is to be adopted.
	holder  func(dir string)
	root    string
	rootID  string
	backend *hostpath.Backend
	quotas  *quotas
	stop    func()
	// retainFor is how long what is deleted is kept.
	retainFor time.Duration
	// named volumes lie at paths of their own.
	named bool
	// copies: files can share their blocks. Where the filesystem cannot, they are copied.
	copies bool
	// subvolumes, if not nil, are what volumes are.
	subvolumes *subvolumes
	// groups, if not nil, are what subvolumes are limited by.
	groups *groups
	// realCopies: the filesystem can.
	realCopies bool
	// cloning, if not nil, is called before a file is copied.
	cloning func()
	// roots are those of all pools of the node.
	roots []string
	// elapsed is what the process takes for the time that it runs.
	// others is what others have of the filesystem, in bytes.
	others  atomic.Int64
	elapsed atomic.Int64

	mu     sync.Mutex
	used   map[string]bool
	left   int
	steps  []string
	armed  bool
	killed bool
	// written are the directories that are mounted for writing.
	written map[string]bool
}

func newPool(t *testing.T) *pool {
	t.Helper()
	return startPool(t, &pool{root: path.Join(t.TempDir(), "pool"), used: map[string]bool{}})
}

// startPool makes the root of a pool and starts a process over it.
func startPool(t *testing.T, p *pool) *pool {
	t.Helper()
	id, err := hostpath.Init(t.Context(), hostpath.Where{Root: p.root}, poolUID)
	must(t, err)
	p.rootID = id
	p.start(t)
	t.Cleanup(func() { p.stop() })
	return p
}

func (p *pool) start(t *testing.T) {
	t.Helper()
	var limits hostpath.Quotas
	if p.quotas != nil {
		limits = p.quotas
	}
	var subvolumes hostpath.Subvolumes
	if p.subvolumes != nil {
		subvolumes = p.subvolumes
	}
	var limitsOfSubvolumes hostpath.Groups
	if p.groups != nil {
		limitsOfSubvolumes = p.groups
	}
	b, err := hostpath.New(hostpath.Options{
		Subvolumes: subvolumes,
		Groups:     limitsOfSubvolumes,

		Quotas:  limits,
		Where:   hostpath.Where{Root: p.root},
		RootID:  p.rootID,
		PoolUID: poolUID,
		Reserve: func(int64) int64 { return reserve },
		InUse: func(dir string) (bool, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.used[dir], nil
		},
		Written: func(dir string) (bool, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.written[dir], nil
		},
		Clone: p.clone(),
		Holder: func(dir string) (string, error) {
			if p.holder != nil {
				p.holder(dir)
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.used[dir] {
				return "it is mounted at /var/lib/kubelet/pods/1/volumes/data", nil
			}
			return "", nil
		},
		OtherRoots: func() ([]string, error) { return p.roots, nil },
		Room: func() (int64, int64, error) {
			return 5*volumeBytes + reserve, 5*volumeBytes + reserve - p.others.Load(), nil
		},
		Elapsed: func() time.Duration { return time.Duration(p.elapsed.Load()) },
		Trash:   hostpath.TrashOptions{RetryMin: 5 * time.Millisecond, RetryMax: 20 * time.Millisecond},
		Log:     slog.New(slog.DiscardHandler),
	})
	must(t, err)
	b.SetStep(p.step)
	if p.copies && !p.realCopies {
		b.SetSync(unix.Fsync)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.Run(ctx)
	}()
	p.backend = b
	p.stop = func() {
		cancel()
		<-done
	}
}

// clone is nil where the kernel is asked.
func (p *pool) clone() func(to, from int) error {
	if !p.copies || p.realCopies {
		return nil
	}
	return func(to, from int) error {
		if p.cloning != nil {
			p.cloning()
		}
		return copyBytes(to, from)
	}
}

// copyBytes does what a filesystem with reflinks does, at the price of the blocks.
func copyBytes(to, from int) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if err := unix.Ftruncate(to, st.Size); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for at := int64(0); ; {
		n, err := unix.Pread(from, buf, at)
		if err != nil || n == 0 {
			return err
		}
		if _, err := unix.Pwrite(to, buf[:n], at); err != nil {
			return err
		}
		at += int64(n)
	}
}

func (p *pool) write(dir string, written bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.written == nil {
		p.written = map[string]bool{}
	}
	p.written[dir] = written
}

func (p *pool) restart(t *testing.T) {
	t.Helper()
	p.stop()
	p.mu.Lock()
	p.armed, p.killed = false, false
	p.mu.Unlock()
	p.start(t)
}

func (p *pool) step(name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed && p.left == 0 {
		p.killed = true
	}
	if p.killed {
		return fmt.Errorf("the process was killed before: %s", name)
	}
	p.left--
	p.steps = append(p.steps, name)
	return nil
}

// taken are the steps since it was asked last.
func (p *pool) taken() (steps []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	steps, p.steps = p.steps, nil
	return steps
}

func (p *pool) crashAt(_ *testing.T, n int) func() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed, p.left = true, n
	return p.dead
}

func (p *pool) dead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.killed
}

func (p *pool) hold(dir string, held bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used[dir] = held
}

// pass lets time go by for the process.
func (p *pool) pass(d time.Duration) {
	p.elapsed.Add(int64(d))
	p.backend.Kick()
}

// settle waits until nothing is left of what was deleted, or the process is dead.
func (p *pool) settle(t *testing.T) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !p.dead() {
		var names []os.DirEntry
		for _, dir := range []string{".trash", ".retained", ".berth/retained", ".copies"} {
			in, err := os.ReadDir(path.Join(p.root, dir))
			if !errors.Is(err, fs.ErrNotExist) {
				must(t, err)
			}
			names = append(names, in...)
		}
		if len(names) == 0 {
			return
		}
		if p.retainFor > 0 {
			p.pass(p.retainFor)
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the trash still holds %v", names)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
