// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/device/devicetest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

const foreignUUID = "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11"

// prober finds what it is told to find.
type prober struct {
	content block.Content
	err     error
}

func (p prober) Probe(context.Context, string) (block.Content, error) { return p.content, p.err }

func ext4() prober {
	return prober{content: block.Content{Found: true, Type: "ext4", Kind: "filesystem", UUID: foreignUUID}}
}

func (n *node) adopter(p device.Prober) *device.Backend {
	return device.New(device.Options{Registry: n.registry, Disks: n.registry.Opener(), Prober: p, Log: quiet})
}

var adoption = volume.Adoption{Disk: "bd-disk-1", FSType: "ext4", FSUUID: foreignUUID}

func TestAdopt(t *testing.T) {
	t.Parallel()
	n := newNode(t, devicetest.NewFileHost(t, mib, 2*mib))
	write(t, n.host, "disk-1", 1024, "a database")
	before := content(t, n.host, "disk-1")
	b := n.adopter(ext4())
	for range 2 {
		rec, err := b.Adopt(t.Context(), spec(1, mib), adoption)
		must(t, err)
		if rec.Device.Name != "bd-disk-1" || rec.SizeBytes != 2*mib {
			t.Fatalf("Adopt = %+v of %d bytes", *rec.Device, rec.SizeBytes)
		}
	}
	if _, err := b.Adopt(t.Context(), spec(2, mib), adoption); !errors.Is(err, volume.ErrNotAdoptable) || !strings.Contains(err.Error(), "pvc-1") {
		t.Errorf("Adopt of an adopted disk = %v, want ErrNotAdoptable that names its holder", err)
	}
	must(t, b.Delete(t.Context(), volumetest.ID(1), nil, volume.WipeNone))
	must(t, n.registry.WaitClean(t.Context()))
	if got := content(t, n.host, "disk-1"); got != before {
		t.Error("the disk was written to")
	}
	// It can be taken back after it was let go.
	if _, err := b.Adopt(t.Context(), spec(2, mib), adoption); err != nil {
		t.Errorf("Adopt of a disk that was given back: %v", err)
	}
}

func TestAdoptRefuses(t *testing.T) {
	t.Parallel()
	other := func(change func(*block.Content)) prober {
		p := ext4()
		change(&p.content)
		return p
	}
	tests := []struct {
		name   string
		prober device.Prober
		change func(t *testing.T, n *node, s *volume.Spec, a *volume.Adoption)
		says   string
		open   bool // the outcome is not known
	}{
		{name: "another UUID", prober: other(func(c *block.Content) { c.UUID = "0c0ffee0" + foreignUUID[8:] }), says: "named was ext4 with UUID " + foreignUUID},
		{name: "another filesystem", prober: other(func(c *block.Content) { c.Type = "xfs" }), says: "it holds xfs with UUID"},
		{name: "several signatures", prober: other(func(c *block.Content) { c.Ambivalent = true }), says: "contradict"},
		{name: "a partition table beside it", prober: other(func(c *block.Content) { c.PartitionTable = "dos" }), says: "a partition table (dos)"},
		{name: "a blank disk", prober: prober{}, says: "no filesystem"},
		{name: "a probe that fails", prober: prober{err: errors.New("input/output error")}, says: "input/output error", open: true},
		{name: "nobody who can tell", prober: nil, says: "nothing can tell", open: true},
		{name: "a disk that is too small", prober: ext4(), says: "spec.sizeBytes", change: func(_ *testing.T, _ *node, s *volume.Spec, _ *volume.Adoption) { s.SizeBytes = 3 * mib }},
		{name: "a disk that is not there", prober: ext4(), says: "bd-disk-9", change: func(_ *testing.T, _ *node, _ *volume.Spec, a *volume.Adoption) { a.Disk = "bd-disk-9" }},
		{name: "a disk that was pulled", prober: ext4(), says: "no disk shows", change: func(t *testing.T, n *node, _ *volume.Spec, _ *volume.Adoption) {
			_, err := n.registry.Candidates(t.Context())
			must(t, err)
			n.host.Pull(t, "disk-1")
		}},
		{name: "a disk in use", prober: ext4(), says: "in use", change: func(t *testing.T, n *node, _ *volume.Spec, _ *volume.Adoption) {
			disk, err := n.host.Opener().Open(t.Context(), pathOf(t, n.host, "disk-1"))
			must(t, err)
			t.Cleanup(func() { must(t, disk.Close()) })
		}},
		{name: "a volume of another disk", prober: ext4(), says: "holds disk bd-disk-0 already", open: true, change: func(t *testing.T, n *node, s *volume.Spec, _ *volume.Adoption) {
			_, err := n.backend.Create(t.Context(), *s)
			must(t, err)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, devicetest.NewFileHost(t, mib, 2*mib))
			s, a := spec(1, mib), adoption
			if test.change != nil {
				test.change(t, n, &s, &a)
			}
			before, err := n.registry.Claims(t.Context())
			must(t, err)
			_, err = n.adopter(test.prober).Adopt(t.Context(), s, a)
			if err == nil || errors.Is(err, volume.ErrNotAdoptable) == test.open || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Adopt = %v, want one that says %q, not adoptable: %v", err, test.says, !test.open)
			}
			after, err := n.registry.Claims(t.Context())
			must(t, err)
			if len(after) != len(before) {
				t.Errorf("claims %+v", after)
			}
		})
	}
}

// A disk that waits for its wipe is not to be had.
func TestAdoptLeavesADiskToItsWipe(t *testing.T) {
	t.Parallel()
	n := newNode(t, devicetest.NewFileHost(t, mib, 2*mib))
	n.stop() // nobody wipes
	b := n.adopter(ext4())
	_, err := b.Adopt(t.Context(), spec(1, mib), adoption)
	must(t, err)
	must(t, b.Delete(t.Context(), volumetest.ID(1), nil, volume.WipeZero))
	if _, err := b.Adopt(t.Context(), spec(2, mib), adoption); !errors.Is(err, volume.ErrNotAdoptable) {
		t.Errorf("Adopt = %v, want ErrNotAdoptable", err)
	}
	n.start()
}

// Killed at any step, a repeated adoption ends in one claim and an untouched disk.
func TestAdoptKilled(t *testing.T) {
	t.Parallel()
	for step := 0; ; step++ {
		n := newNode(t, devicetest.NewFileHost(t, mib, 2*mib))
		write(t, n.host, "disk-1", 1024, "a database")
		before := content(t, n.host, "disk-1")
		crashed := n.registry.CrashAt(step)
		_, _ = n.adopter(ext4()).Adopt(t.Context(), spec(1, mib), adoption)
		died := crashed()
		n.registry.Revive()
		rec, err := n.adopter(ext4()).Adopt(t.Context(), spec(1, mib), adoption)
		if err != nil || rec.Device.Name != "bd-disk-1" {
			t.Fatalf("killed at step %d: %+v, %v", step, rec.Device, err)
		}
		if content(t, n.host, "disk-1") != before {
			t.Fatalf("killed at step %d: the disk was written to", step)
		}
		if !died {
			if step < 2 {
				t.Errorf("only %d steps", step)
			}
			return
		}
	}
}
