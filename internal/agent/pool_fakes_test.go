// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// The host's lvm.

type fakeLVM struct{ h *poolHost }

func (l fakeLVM) group(uuid string) *lvm.Group {
	g := l.h.groups[uuid]
	found := &lvm.Group{Name: g.name, UUID: uuid, MissingPVs: g.missing}
	for _, path := range g.devices {
		found.PVs = append(found.PVs, lvm.PhysicalVolume{Path: path})
	}
	return found
}

func (l fakeLVM) FindGroup(_ context.Context, poolUID string) (*lvm.Group, error) {
	for uuid, g := range l.h.groups {
		if g.poolUID == poolUID {
			return l.group(uuid), nil
		}
	}
	return nil, volume.ErrNotFound
}

func (l fakeLVM) CreateGroup(ctx context.Context, spec lvm.GroupSpec) (*lvm.Group, error) {
	if g, err := l.FindGroup(ctx, spec.PoolUID); err == nil {
		for _, d := range spec.Devices {
			if !slices.Contains(l.h.groups[g.UUID].devices, d) {
				return nil, volume.ErrExists
			}
		}
		return g, nil
	}
	for _, g := range l.h.groups {
		if g.name == spec.Name {
			return nil, fmt.Errorf("%w: foreign", volume.ErrExists)
		}
	}
	if err := l.h.killer.step(); err != nil {
		return nil, err
	}
	l.h.creates++
	uuid := fmt.Sprintf("vg-%d", l.h.creates)
	l.h.groups[uuid] = &fakeGroup{name: spec.Name, poolUID: spec.PoolUID, devices: spec.Devices}
	return l.group(uuid), l.h.killer.step()
}

func (l fakeLVM) ExtendGroup(_ context.Context, uuid string, spec lvm.GroupSpec) (*lvm.Group, error) {
	g := l.h.groups[uuid]
	if g == nil || g.poolUID != spec.PoolUID {
		return nil, volume.ErrIdentity
	}
	if g.missing > 0 && !spec.Partial {
		return nil, volume.ErrPoolUnavailable
	}
	if err := l.h.killer.step(); err != nil {
		return nil, err
	}
	for _, d := range spec.Devices {
		if !slices.Contains(g.devices, d) {
			g.devices = append(g.devices, d)
		}
	}
	// Whoever looks at the group from here on sees all of it, or takes it for damaged.
	if shown := l.h.pools.live(spec.PoolSet).devices.get(); shown != nil {
		for _, d := range g.devices {
			if disk := l.h.disks[strings.TrimPrefix(d, "/dev/")]; !slices.Contains(shown, d) && disk != nil && !disk.missing {
				l.h.t.Errorf("disk %s is part of the group, which is shown to be %v", d, shown)
			}
		}
	}
	return l.group(uuid), l.h.killer.step()
}

func (l fakeLVM) RemoveGroup(_ context.Context, uuid, poolUID string, _ []string) error {
	g := l.h.groups[uuid]
	if g == nil {
		return nil
	}
	if g.poolUID != poolUID {
		return volume.ErrIdentity
	}
	if found, err := l.h.memory(uuid).List(context.Background()); err != nil || len(found) > 0 {
		return errors.Join(volume.ErrInUse, err)
	}
	if err := l.h.killer.step(); err != nil {
		return err
	}
	delete(l.h.groups, uuid)
	return l.h.killer.step()
}

func (l fakeLVM) AdoptGroup(ctx context.Context, name, uuid string) (*lvm.Group, error) {
	g, err := l.GroupByUUID(ctx, uuid)
	switch {
	case err != nil:
		return nil, err
	case g.Name != name:
		return nil, volume.ErrIdentity
	case l.h.groups[uuid].poolUID != "":
		return nil, volume.ErrExists
	}
	return g, nil
}

func (l fakeLVM) AdoptThinPool(ctx context.Context, name, uuid string, pool lvm.ThinPoolID) (*lvm.Group, error) {
	g, err := l.AdoptGroup(ctx, name, uuid)
	if err == nil {
		err = l.h.groups[uuid].lookAt(pool)
	}
	return g, err
}

// lookAt returns what a real backend says of a thin pool that was adopted.
func (g *fakeGroup) lookAt(pool lvm.ThinPoolID) error {
	switch {
	case g.thinPool == lvm.ThinPoolID{}:
		return errors.Join(volume.ErrPoolUnavailable, volume.ErrNotFound)
	case g.thinPool != pool:
		return errors.Join(volume.ErrPoolUnavailable, volume.ErrIdentity)
	}
	return nil
}

func (l fakeLVM) GroupByUUID(_ context.Context, uuid string) (*lvm.Group, error) {
	if l.h.groups[uuid] == nil {
		return nil, volume.ErrNotFound
	}
	return l.group(uuid), nil
}

func (l fakeLVM) LetGroupGo(string) error {
	if err := l.h.killer.step(); err != nil {
		return err
	}
	return l.h.killer.step()
}

func (l fakeLVM) Backend(o lvm.Options) (GroupBackend, error) {
	return &fakeGroupBackend{l.h.memory(o.GroupUUID), l, o.GroupUUID, o.ThinPool}, nil
}

func (h *poolHost) memory(key string) *volumetest.Memory {
	m := h.memories[key]
	if m == nil {
		m = volumetest.NewMemory(volumetest.MemoryOptions{Dir: h.t.TempDir(), TotalBytes: 100 * mib})
		h.memories[key] = m
	}
	return m
}

type fakeGroupBackend struct {
	*volumetest.Memory
	lvm  fakeLVM
	uuid string
	pool *lvm.ThinPoolID
}

func (b *fakeGroupBackend) Group(context.Context) (*lvm.Group, error) {
	if b.lvm.h.groups[b.uuid] == nil {
		return nil, volume.ErrPoolUnavailable
	}
	return b.lvm.group(b.uuid), nil
}

// Capacity has the more room the more disks the group has beside its first.
func (b *fakeGroupBackend) Capacity(ctx context.Context) (volume.Capacity, error) {
	c, err := b.Memory.Capacity(ctx)
	if g := b.lvm.h.groups[b.uuid]; err == nil && g != nil {
		more := int64(len(g.devices)-1) * 100 * mib
		c.TotalBytes, c.FreeBytes = c.TotalBytes+more, c.FreeBytes+more
	}
	return c, err
}

func (b *fakeGroupBackend) Text(context.Context) (lvm.GroupText, error) {
	return lvm.GroupText{}, volume.ErrPoolUnavailable
}

func (b *fakeGroupBackend) DumpThinPool(context.Context, func() error, io.Writer) (lvm.ThinDump, error) {
	return lvm.ThinDump{}, volume.ErrPoolUnavailable
}

func (b *fakeGroupBackend) ReleaseThinPool(context.Context) error { return nil }

type fakeEvents struct{}

func (fakeEvents) WatchEvents(ctx context.Context, happened func()) error {
	happened()
	<-ctx.Done()
	return nil
}

func (b *fakeGroupBackend) Tend(context.Context) (*lvm.ThinState, error) {
	if b.pool != nil {
		if err := b.lvm.h.groups[b.uuid].lookAt(*b.pool); err != nil {
			return nil, err
		}
	}
	return b.lvm.h.thin, b.lvm.h.thinErr
}

// Mend puts what was on disks that are missing on others, as far as there are more of
// them than the group began with.
func (b *fakeGroupBackend) Mend(_ context.Context, o lvm.MendOptions) (*lvm.RaidState, error) {
	h, g := b.lvm.h, b.lvm.h.groups[b.uuid]
	state := h.raid
	if g.missing == 0 || !o.Replace {
		return &state, nil
	}
	if len(g.devices)-g.missing < 2 {
		state.Waiting = "no disk of the pool has room"
		return &state, nil
	}
	g.devices = slices.DeleteFunc(g.devices, func(path string) bool { return h.disks[strings.TrimPrefix(path, "/dev/")].missing })
	state.Repaired, state.DroppedDevices, g.missing = 1, g.missing, 0
	return &state, h.killer.step()
}

// Evacuate takes devices out of the group on which nothing is.
func (b *fakeGroupBackend) Evacuate(_ context.Context, o lvm.EvacuateOptions) ([]lvm.Evacuation, error) {
	h, g := b.lvm.h, b.lvm.h.groups[b.uuid]
	if g.missing > 0 {
		return nil, volume.ErrPoolUnavailable
	}
	if g.closed == nil {
		g.closed = map[string]bool{}
	}
	for _, path := range o.Open {
		if err := h.killer.step(); err != nil {
			return nil, err
		}
		delete(g.closed, path)
	}
	var found []lvm.Evacuation
	for _, path := range o.Empty {
		if err := h.killer.step(); err != nil {
			return nil, err
		}
		g.closed[path] = true
		f := lvm.Evacuation{Path: path, RemainingBytes: h.onDisk, Waiting: h.stuck, Moving: h.stuck == "" && h.onDisk > 0}
		if h.onDisk == 0 && h.stuck == "" {
			g.devices = slices.DeleteFunc(slices.Clone(g.devices), func(d string) bool { return d == path })
			delete(g.closed, path)
			f.Out = true
		}
		found = append(found, f)
		if err := h.killer.step(); err != nil {
			return nil, err
		}
	}
	for _, path := range o.Open {
		if !slices.Contains(g.devices, path) {
			found = append(found, lvm.Evacuation{Path: path, Out: true})
		}
	}
	return found, nil
}

func (b *fakeGroupBackend) List(ctx context.Context) ([]volume.Found, error) {
	if b.lvm.h.groups[b.uuid] == nil {
		return nil, volume.ErrPoolUnavailable
	}
	return b.Memory.List(ctx)
}

// The host's directories.

type fakeRoots struct{ h *poolHost }

func (r fakeRoots) Init(_ context.Context, where hostpath.Where, poolUID string) (string, error) {
	if err := r.h.killer.step(); err != nil {
		return "", err
	}
	if id, ok := r.h.roots[where.Root]; ok {
		if id != "root of "+poolUID {
			return "", volume.ErrExists
		}
		return id, nil
	}
	r.h.inits++
	r.h.roots[where.Root] = "root of " + poolUID
	return r.h.roots[where.Root], r.h.killer.step()
}

func (r fakeRoots) Backend(o hostpath.Options) (RootBackend, error) {
	return &fakeRootBackend{r.h.memory(o.Root), r.h, o}, nil
}

type fakeRootBackend struct {
	*volumetest.Memory
	h *poolHost
	o hostpath.Options
}

func (b *fakeRootBackend) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Limits says whether the filesystem of the root has quotas.
func (b *fakeRootBackend) Limits(context.Context) error { return b.h.limits }

// Copies says whether it has reflinks, or subvolumes.
func (b *fakeRootBackend) Copies(context.Context) (bool, error) { return b.h.instant, b.h.noCopies }

func (b *fakeRootBackend) Retained(context.Context) ([]hostpath.Retained, error) {
	return slices.Clone(b.h.retained), b.h.retainedErr
}

func (b *fakeRootBackend) TakeBack(_ context.Context, name string) (string, error) {
	for i := range b.h.retained {
		if k := &b.h.retained[i]; k.Entry == name || k.Name == name {
			k.TakenBack, k.Directory = true, "/srv/berth/taken-back/"+k.Entry
			return k.Directory, nil
		}
	}
	return "", fmt.Errorf("take back %q: %w", name, volume.ErrNotFound)
}

func (b *fakeRootBackend) Capacity(ctx context.Context) (volume.Capacity, error) {
	if b.h.roots[b.o.Root] != b.o.RootID {
		return volume.Capacity{}, fmt.Errorf("no marker: %w", volume.ErrPoolUnavailable)
	}
	return b.Memory.Capacity(ctx)
}
