// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/berth-dev/berth/pkg/volume"
)

// MemoryOptions of a Memory.
type MemoryOptions struct {
	// Dir is where the volumes' bytes are kept, in sparse files or, in mode hostpath,
	// in directories; an absolute path, usually t.TempDir().
	Dir string
	// Mode whose records and locations it makes; empty means lvm.
	Mode volume.Mode
	// TotalBytes it may promise.
	TotalBytes int64
	// Remains makes a new block volume hold what an earlier owner left, until Create
	// clears it in a step of its own.
	Remains bool
}

// Memory is a backend for the tests of what stands on backends. It has effects:
// volumes take space, hold bytes, can be held open, tampered with and lost. It
// passes the conformance suite.
//
// What it has made outlives "processes": Reboot moves every device to another
// path, as a reboot does, and forgets nothing else. Methods are safe for
// concurrent use.
type Memory struct {
	opts MemoryOptions

	mu      sync.Mutex
	volumes map[string]*memoryVolume
	made    int // volumes ever made, for identities that never come again
	boots   int
	blind   error
	hook    func(context.Context, Step) error
	left    int // steps until the crash; negative for none
	killed  bool
}

type memoryVolume struct {
	record   volume.Record
	name     string
	claim    string
	former   string // the ID that it was a left-over under
	store    string // file or directory with its bytes; empty when it has vanished
	tampered bool
	holders  int
}

// Step is a moment in a call that changes something.
type Step struct {
	// Op is Create, Clear (the end of a Create with MemoryOptions.Remains), Grow, TakeOver, LetGo or
	// Delete.
	Op string
	// ID of the volume.
	ID string
	// Done is false before the change and true after it.
	Done bool
}

var (
	_ volume.Backend  = (*Memory)(nil)
	_ volume.Examiner = (*Memory)(nil)
)

// errMemoryKilled is what a call gets after CrashAt has come.
var errMemoryKilled = errors.New("the backend was killed here")

const memoryRootID = "memory-root"

// NewMemory returns an empty backend.
func NewMemory(o MemoryOptions) *Memory {
	if o.Mode == "" {
		o.Mode = volume.ModeLVM
	}
	return &Memory{opts: o, volumes: map[string]*memoryVolume{}, left: -1}
}

// SetHook makes every call that changes something call hook before and after the
// change; nil ends it. An error of the hook is the call's: before, nothing was
// changed; after, it was, and the caller does not know. A hook that blocks makes
// the backend slow; no lock is held meanwhile.
func (m *Memory) SetHook(hook func(context.Context, Step) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = hook
}

// Blind makes every call fail with the error, without an effect, until it is
// called with nil.
func (m *Memory) Blind(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blind = err
}

// Tamper makes the volume be another than was recorded.
func (m *Memory) Tamper(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.volumes[id]; v != nil {
		v.tampered = true
	}
}

// Vanish takes the volume's storage away.
func (m *Memory) Vanish(id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.volumes[id]
	if v == nil {
		return nil
	}
	store := v.store
	v.store = ""
	return m.erase(store)
}

// Hold keeps the volume in use until release is called.
func (m *Memory) Hold(id string) (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.volumes[id]
	if v == nil {
		return func() {}
	}
	v.holders++
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		v.holders--
	})
}

// Reboot moves every device to another path and ends a crash.
func (m *Memory) Reboot() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.boots++
	m.left, m.killed = -1, false
}

// CrashAt kills the backend at the n-th step from now, counted from 0: there is
// one before and one after each change. Reboot revives it.
func (m *Memory) CrashAt(n int) (crashed func() bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left = n
	return func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.killed
	}
}

// Create implements volume.Backend.
func (m *Memory) Create(ctx context.Context, spec volume.Spec) (rec volume.Record, err error) {
	if err := spec.ValidateEmpty(); err != nil {
		return volume.Record{}, err
	}
	if m.opts.Mode == volume.ModeHostpath && spec.Access == volume.AccessBlock {
		return volume.Record{}, fmt.Errorf("a directory is no block device: %w", volume.ErrInvalid)
	}
	made := false
	err = m.change(ctx, Step{Op: "Create", ID: spec.ID}, func() error {
		v := m.volumes[spec.ID]
		if made = v == nil; made {
			v, err = m.add(spec)
		} else {
			err = m.resize(v, spec.SizeBytes)
		}
		if err == nil {
			rec = v.record
			_, err = m.locate(spec.ID, v)
		}
		return err
	})
	if err != nil || !m.opts.Remains || !made && !spec.Fresh {
		return rec, err
	}
	return rec, m.change(ctx, Step{Op: "Clear", ID: spec.ID}, func() error {
		store := m.volumes[spec.ID].store
		return errors.Join(os.Truncate(store, 0), os.Truncate(store, rec.SizeBytes))
	})
}

// Absent reports whether there is no volume of that ID (volume.Spec.Fresh).
func (m *Memory) Absent(ctx context.Context, id string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.volumes[id] == nil, m.observe(ctx)
}

// Locate implements volume.Backend.
func (m *Memory) Locate(ctx context.Context, id string, rec volume.Record) (volume.Location, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.observe(ctx); err != nil {
		return volume.Location{}, err
	}
	v, err := m.find(id, &rec)
	if err != nil {
		return volume.Location{}, err
	}
	return m.locate(id, v)
}

// Grow implements volume.Backend.
func (m *Memory) Grow(ctx context.Context, id string, rec volume.Record, sizeBytes int64) (volume.Record, error) {
	var grown volume.Record
	err := m.change(ctx, Step{Op: "Grow", ID: id}, func() error {
		v, err := m.find(id, &rec)
		if err != nil {
			return err
		}
		err = m.resize(v, sizeBytes)
		grown = v.record
		return err
	})
	if err != nil {
		return volume.Record{}, err
	}
	return grown, nil
}

// Delete implements volume.Backend.
func (m *Memory) Delete(ctx context.Context, id string, rec *volume.Record, _ volume.WipePolicy) error {
	return m.change(ctx, Step{Op: "Delete", ID: id}, func() error {
		if _, err := m.find(id, rec); err != nil && !errors.Is(err, volume.ErrNotFound) {
			return err
		}
		v := m.volumes[id]
		if v == nil {
			return nil
		}
		if v.holders > 0 {
			return fmt.Errorf("volume %s is held: %w", id, volume.ErrInUse)
		}
		if v.store != "" {
			if err := m.erase(v.store); err != nil {
				return err
			}
		}
		delete(m.volumes, id)
		return nil
	})
}

// List implements volume.Backend.
func (m *Memory) List(ctx context.Context) ([]volume.Found, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.observe(ctx); err != nil {
		return nil, err
	}
	var found []volume.Found
	for id, v := range m.volumes {
		found = append(found, volume.Found{ID: id, Record: v.record})
	}
	slices.SortFunc(found, func(a, b volume.Found) int { return strings.Compare(a.ID, b.ID) })
	return found, nil
}

// Examine implements volume.Examiner. A volume that was tampered with is another one.
func (m *Memory) Examine(ctx context.Context, id string) (volume.Examination, error) {
	if err := volume.ValidateID(id); err != nil {
		return volume.Examination{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.observe(ctx); err != nil {
		return volume.Examination{}, err
	}
	v := m.volumes[id]
	if v == nil {
		return volume.Examination{}, fmt.Errorf("volume %s: %w", id, volume.ErrNotFound)
	}
	e := volume.Examination{Record: v.record, Identity: filepath.Base(v.store), Name: v.name, Claim: v.claim}
	if v.tampered {
		e.Identity += " tampered"
	}
	return e, nil
}

// ProveUnused implements volume.Examiner.
func (m *Memory) ProveUnused(ctx context.Context, id string, rec volume.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.observe(ctx); err != nil {
		return err
	}
	v, err := m.find(id, &rec)
	if err != nil {
		return err
	}
	if v.holders > 0 {
		return fmt.Errorf("volume %s is held: %w", id, volume.ErrInUse)
	}
	return nil
}

// Capacity implements volume.Backend.
func (m *Memory) Capacity(ctx context.Context) (volume.Capacity, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.observe(ctx); err != nil {
		return volume.Capacity{}, err
	}
	return m.capacity(), nil
}

// observe fails when nothing can be seen.
func (m *Memory) observe(ctx context.Context) error {
	if m.killed {
		return errMemoryKilled
	}
	return errors.Join(ctx.Err(), m.blind)
}

// change runs apply under the lock, between the two steps.
func (m *Memory) change(ctx context.Context, step Step, apply func() error) error {
	if err := m.pass(ctx, step); err != nil {
		return err
	}
	if err := func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if err := m.observe(ctx); err != nil {
			return err
		}
		return apply()
	}(); err != nil {
		return err
	}
	step.Done = true
	return m.pass(ctx, step)
}

func (m *Memory) pass(ctx context.Context, step Step) error {
	m.mu.Lock()
	hook := m.hook
	if m.left == 0 {
		m.killed = true
	}
	if m.left > 0 {
		m.left--
	}
	killed := m.killed
	m.mu.Unlock()
	if killed {
		return errMemoryKilled
	}
	if hook == nil {
		return nil
	}
	return hook(ctx, step)
}
