// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/berth-dev/berth/pkg/volume"
)

// ThinPoolID names a thin pool of somebody else twice: both must be true.
type ThinPoolID struct {
	Name, UUID string
}

func (o Options) checkThinPool() error {
	switch id := o.ThinPool; {
	case id == nil:
		return nil
	case o.Thin == nil || o.Layout != LayoutLinear:
		return fmt.Errorf("%w: thin pool %s is for thin volumes", volume.ErrInvalid, id.Name)
	case !namePattern.MatchString(id.Name) || !validUUID(id.UUID):
		return fmt.Errorf("%w: %q with UUID %q cannot be a thin pool", volume.ErrInvalid, id.Name, id.UUID)
	}
	return nil
}

// AdoptThinPool is AdoptGroup for a thin pool in the group. It changes nothing.
//
// Beside what AdoptGroup returns: volume.ErrPoolUnavailable when the thin pool cannot be
// used, with volume.ErrNotFound where it is not there, and volume.ErrIdentity where name or
// UUID are another one's.
func (c *Client) AdoptThinPool(ctx context.Context, name, uuid string, pool ThinPoolID) (*Group, error) {
	g, err := c.AdoptGroup(ctx, name, uuid)
	if err != nil {
		return nil, err
	}
	report, stderr, err := c.shell(ctx, session{devices: g.Paths(), thin: true, foreignPool: true}, nil)
	if err != nil {
		return nil, fmt.Errorf("look at thin pool %s/%s: %w", name, pool.Name, explain(stderr, err))
	}
	if g = report.Group(uuid); g == nil || g.Name != name {
		return nil, fmt.Errorf("volume group %s (%s): %w: it has changed meanwhile", name, uuid, volume.ErrBusy)
	}
	g.adopted = &pool
	if _, err := g.adoptedPool(); err != nil {
		return nil, err
	}
	return g, g.usable()
}

// adoptedPool returns the thin pool that was adopted, or why it cannot be used.
func (g *Group) adoptedPool() (*LogicalVolume, error) {
	id := g.adopted
	named, pool := g.Volume(id.Name), g.volumeByUUID(id.UUID)
	bad := func(sentinel error, format string, args ...any) error {
		what := fmt.Sprintf("thin pool %s/%s (%s): ", g.Name, id.Name, id.UUID) + fmt.Sprintf(format, args...)
		if sentinel == nil {
			return fmt.Errorf("%w: %s", volume.ErrPoolUnavailable, what)
		}
		return fmt.Errorf("%w: %w: %s", volume.ErrPoolUnavailable, sentinel, what)
	}
	switch {
	case pool == nil && named == nil:
		return nil, bad(volume.ErrNotFound, "it is not there any more, or never was")
	case pool == nil:
		return nil, bad(volume.ErrIdentity, "the volume of that name has the UUID %s", named.UUID)
	case pool != named:
		return nil, bad(volume.ErrIdentity, "it is called %s now; lvrename gives it its name back", pool.Name)
	case !pool.isPool():
		return nil, bad(volume.ErrIdentity, "it is no thin pool (layout %s)", strings.Join(pool.Layout, ","))
	case slices.Contains(pool.Tags, TagThinPool):
		return nil, bad(volume.ErrExists, "Berth made it")
	case pool.ShowsOldData:
		return nil, bad(nil, "its volumes show what others had written before; lvchange --zero y %s/%s changes that", g.Name, pool.Name)
	}
	for _, layout := range pool.below {
		if len(layout) == 0 || !slices.Contains(underPools, layout[0]) {
			return nil, bad(nil, "it lies on a volume of layout %s, of which Berth cannot tell how full it is", strings.Join(layout, ","))
		}
	}
	return pool, nil
}

// underPools are the layouts of what a thin pool of somebody else may lie on: each byte of
// it has its place on a disk. Of VDO that is not so.
var underPools = []string{"linear", "striped", "raid", "mirror", "cache", "writecache", "integrity"}

func (g *Group) inactivePool(pool *LogicalVolume) error {
	return fmt.Errorf("%w: thin pool %s/%s (%s): it is not active; lvchange --activate y %s/%s activates it",
		volume.ErrPoolUnavailable, g.Name, pool.Name, pool.UUID, g.Name, pool.Name)
}

func (g *Group) thinPoolName() string {
	if g.adopted != nil {
		return g.adopted.Name
	}
	return thinPoolName
}

// refuses returns why nothing new may be put into somebody else's thin pool. What touches
// the pool itself is a mistake of ours, and is never given to lvm.
func (p *plan) refuses(op *operation) error {
	if p.group.adopted == nil {
		return nil
	}
	switch op.verb {
	case verbTend, verbWhenFull:
		return fmt.Errorf("%s %s/%s: %w: the thin pool was adopted", op.verb, p.group.Name, op.name, volume.ErrInvalid)
	case verbCreate, verbGrow, verbClone, verbSnapshot:
		if err := p.terms.thin.unusable; err != nil {
			return fmt.Errorf("%s %s/%s: %w", op.verb, p.group.Name, op.name, err)
		}
	default:
	}
	return nil
}

// settingsOfAdopted leave the pool as its owner has it. Its low-water mark is by the host's
// own lvm.conf. Whether dmeventd watches it stays as it is, but for one that is not active:
// it is watched from then on if the host's lvm.conf says so.
func (p *plan) settingsOfAdopted() []string {
	if p.terms.thin.usage == nil {
		return nil
	}
	return []string{"monitoring=0"}
}
