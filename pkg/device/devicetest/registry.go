// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package devicetest

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"

	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

// Registry is a device.Registry over the disks of a Host. Its claims are as
// durable as the value: a backend that is made anew over it sees them.
//
// Unlike the real one it does not look at what is on a disk: a disk with foreign
// data is a candidate, as it is for a registry that lags behind.
type Registry struct {
	host *Host
	kill killer

	mu      sync.Mutex
	entries map[string]*entry
	blind   error
	changed chan struct{}
	wipeDue func()
}

var _ device.Registry = (*Registry)(nil)

type entry struct {
	serial    string
	sizeBytes int64
	state     device.State
	owner     device.Owner
	token     string
	policy    volume.WipePolicy
	message   string
}

// NewRegistry returns a registry of the host's disks, all unclaimed.
func NewRegistry(host *Host) *Registry {
	return &Registry{host: host, entries: map[string]*entry{}, changed: make(chan struct{})}
}

// Name under which the registry knows the disks of this serial.
func Name(serial string) string { return "bd-" + serial }

// Blind makes every method fail with the error until it is called with nil.
func (r *Registry) Blind(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blind = err
}

// Message returns why the disk did not come clean.
func (r *Registry) Message(diskName string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.entries[diskName]; e != nil {
		return e.message
	}
	return ""
}

// CrashAt kills whatever works on the registry, and on the disks of Opener, at
// the n-th step from now: there is one before and one after each change. crashed
// reports whether it came so far; Revive ends it.
func (r *Registry) CrashAt(n int) (crashed func() bool) {
	r.kill.arm(n, r.wake)
	return r.kill.dead
}

// Revive is the start of the next process.
func (r *Registry) Revive() { r.kill.arm(-1, nil) }

// Opener opens the host's disks and dies with the registry.
func (r *Registry) Opener() device.Opener { return mortalOpener{r.host.Opener(), &r.kill} }

// WaitClean returns when no disk that is present waits for a wipe, when the
// crash has come, or with the context's error.
func (r *Registry) WaitClean(ctx context.Context) error {
	for {
		r.mu.Lock()
		changed, waiting := r.changed, false
		for name, e := range r.entries {
			waiting = waiting || e.token != "" && len(r.present(name)) > 0
		}
		r.mu.Unlock()
		if !waiting || r.kill.dead() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Candidates implements device.Registry.
func (r *Registry) Candidates(context.Context) ([]volume.Disk, error) {
	defer r.lock()()
	if err := r.observe(); err != nil {
		return nil, err
	}
	var out []volume.Disk
	for name, e := range r.entries {
		if disks := r.present(name); e.state == device.StateUnclaimed && len(disks) == 1 {
			out = append(out, volume.Disk{Name: name, Path: disks[0].Path, SizeBytes: disks[0].SizeBytes, Serial: e.serial})
		}
	}
	return out, nil
}

// Claims implements device.Registry.
func (r *Registry) Claims(context.Context) ([]device.Claimed, error) {
	defer r.lock()()
	if err := r.observe(); err != nil {
		return nil, err
	}
	var out []device.Claimed
	for name, e := range r.entries {
		if e.state == device.StateClaimed {
			out = append(out, r.claimed(name, e))
		}
	}
	return out, nil
}

// ClaimedBy implements device.Registry.
func (r *Registry) ClaimedBy(ctx context.Context, ownerUID string) (device.Claimed, bool, error) {
	claims, err := r.Claims(ctx)
	for _, c := range claims {
		if c.Owner.UID == ownerUID {
			return c, true, nil
		}
	}
	return device.Claimed{}, false, err
}

// Claim implements device.Registry.
func (r *Registry) Claim(ctx context.Context, diskName string, owner device.Owner) (device.Claimed, error) {
	defer r.lock()()
	e, err := r.entry(diskName)
	if err != nil {
		return device.Claimed{}, err
	}
	switch {
	case e.state == device.StateClaimed && e.owner == owner:
	case e.state != device.StateUnclaimed:
		return device.Claimed{}, fmt.Errorf("disk %s is %s: %w", diskName, e.state, volume.ErrBusy)
	case len(r.present(diskName)) != 1:
		return device.Claimed{}, fmt.Errorf("disk %s: %w", diskName, volume.ErrInvalid)
	}
	err = r.change(ctx, func() { e.state, e.owner = device.StateClaimed, owner })
	return r.claimed(diskName, e), err
}

// Adopt implements device.Registry.
func (r *Registry) Adopt(ctx context.Context, diskName string, owner device.Owner) (device.Claimed, error) {
	defer r.lock()()
	e, err := r.entry(diskName)
	if err != nil {
		return device.Claimed{}, err
	}
	switch {
	case e.state == device.StateClaimed && e.owner == owner:
	case e.state == device.StateClaimed, e.token != "":
		return device.Claimed{}, fmt.Errorf("disk %s is %s: %w", diskName, e.state, volume.ErrBusy)
	case len(r.present(diskName)) != 1:
		return device.Claimed{}, fmt.Errorf("disk %s: %w", diskName, volume.ErrInvalid)
	}
	err = r.change(ctx, func() { e.state, e.owner, e.policy = device.StateClaimed, owner, "" })
	return r.claimed(diskName, e), err
}

// HandOver implements device.Registry.
func (r *Registry) HandOver(ctx context.Context, diskName, fromUID string, owner device.Owner) (device.Claimed, error) {
	defer r.lock()()
	e, err := r.entry(diskName)
	if err != nil {
		return device.Claimed{}, err
	}
	switch {
	case e.state != device.StateClaimed || e.owner.Kind != device.OwnerVolume || e.owner != owner && e.owner.UID != fromUID:
		return device.Claimed{}, fmt.Errorf("disk %s is %s: %w", diskName, e.state, volume.ErrBusy)
	case e.owner == owner:
		return r.claimed(diskName, e), nil
	}
	err = r.change(ctx, func() { e.owner = owner })
	return r.claimed(diskName, e), err
}

// Abandon implements device.Registry.
func (r *Registry) Abandon(ctx context.Context, diskName, ownerUID string) error {
	defer r.lock()()
	e, err := r.entry(diskName)
	if err != nil || e.state != device.StateClaimed || e.owner.UID != ownerUID {
		return err
	}
	return r.change(ctx, func() { e.state, e.owner = device.StateUnclaimed, device.Owner{} })
}

// Resolve implements device.Registry.
func (r *Registry) Resolve(_ context.Context, diskName string) (device.Claimed, error) {
	defer r.lock()()
	e, err := r.entry(diskName)
	if err != nil {
		return device.Claimed{}, err
	}
	switch n := len(r.present(diskName)); {
	case n == 0:
		return device.Claimed{}, fmt.Errorf("no disk shows the serial %s: %w", e.serial, volume.ErrNotFound)
	case n > 1:
		return device.Claimed{}, fmt.Errorf("%d disks show the serial %s: %w", n, e.serial, volume.ErrIdentity)
	}
	c := r.claimed(diskName, e)
	c.WipeToken = e.token
	return c, nil
}

// Release implements device.Registry.
func (r *Registry) Release(ctx context.Context, diskName, ownerUID string, policy volume.WipePolicy) (string, error) {
	defer r.lock()()
	e, err := r.entry(diskName)
	if err != nil {
		return "", err
	}
	if e.owner.UID != ownerUID || e.state == device.StateUnclaimed {
		return "", fmt.Errorf("disk %s is not held by %s: %w", diskName, ownerUID, volume.ErrNotFound)
	}
	if e.state == device.StateReleased {
		return e.token, nil
	}
	token := ""
	if policy != volume.WipeNone {
		token = rand.Text()
	}
	if err := r.change(ctx, func() { e.state, e.token, e.policy, e.message = device.StateReleased, token, policy, "" }); err != nil {
		return "", err
	}
	if r.wipeDue != nil && token != "" {
		r.wipeDue()
	}
	return token, nil
}

// OnWipeDue calls f, which must not block, when a disk was released and is to be wiped;
// wire it to Cleaner.Kick.
func (r *Registry) OnWipeDue(f func()) {
	defer r.lock()()
	r.wipeDue = f
}

// FinishWipe implements device.Registry.
func (r *Registry) FinishWipe(ctx context.Context, diskName, token string, clean bool, message string) error {
	defer r.lock()()
	e, err := r.entry(diskName)
	if err != nil {
		return err
	}
	if e.state != device.StateReleased || token == "" || e.token != token {
		return fmt.Errorf("disk %s has no open wipe of this token: %w", diskName, volume.ErrNotFound)
	}
	return r.change(ctx, func() {
		e.message = message
		if clean {
			e.state, e.owner, e.token, e.policy = device.StateUnclaimed, device.Owner{}, "", ""
		}
	})
}

// Released implements device.Registry.
func (r *Registry) Released(context.Context) ([]device.ReleasedDisk, error) {
	defer r.lock()()
	if err := r.observe(); err != nil {
		return nil, err
	}
	var out []device.ReleasedDisk
	for name, e := range r.entries {
		if e.state == device.StateReleased {
			out = append(out, device.ReleasedDisk{
				Name: name, IdentityScheme: scheme, IdentityValue: e.serial, SizeBytes: e.sizeBytes,
				Token: e.token, Policy: e.policy, Owner: e.owner,
			})
		}
	}
	return out, nil
}

const scheme = "serial"

func (r *Registry) lock() (unlock func()) {
	r.mu.Lock()
	return r.mu.Unlock
}

// observe learns the disks that are new on the host, unless it is blind or dead.
func (r *Registry) observe() error {
	if r.kill.dead() {
		return errKilled
	}
	if r.blind != nil {
		return r.blind
	}
	for _, d := range r.host.Disks() {
		if name := Name(d.Serial); r.entries[name] == nil {
			r.entries[name] = &entry{serial: d.Serial, sizeBytes: d.SizeBytes, state: device.StateUnclaimed}
		}
	}
	return nil
}

func (r *Registry) entry(diskName string) (*entry, error) {
	if err := r.observe(); err != nil {
		return nil, err
	}
	e := r.entries[diskName]
	if e == nil {
		return nil, fmt.Errorf("disk %s: %w", diskName, volume.ErrNotFound)
	}
	return e, nil
}

// change makes a change durable, or does not, as the context and the crash want.
func (r *Registry) change(ctx context.Context, apply func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := r.kill.step(); err != nil {
		return err
	}
	apply()
	close(r.changed)
	r.changed = make(chan struct{})
	return r.kill.step()
}

// wake tells those who wait that the crash has come. The lock may be held.
func (r *Registry) wake() {
	go func() {
		defer r.lock()()
		close(r.changed)
		r.changed = make(chan struct{})
	}()
}

func (r *Registry) present(diskName string) []HostDisk {
	var out []HostDisk
	for _, d := range r.host.Disks() {
		if Name(d.Serial) == diskName {
			out = append(out, d)
		}
	}
	return out
}

func (r *Registry) claimed(name string, e *entry) device.Claimed {
	c := device.Claimed{
		Name: name, IdentityScheme: scheme, IdentityValue: e.serial,
		SizeBytes: e.sizeBytes, State: e.state, Owner: e.owner,
	}
	if disks := r.present(name); len(disks) == 1 {
		c.Path, c.SizeBytes = disks[0].Path, disks[0].SizeBytes
	}
	return c
}
