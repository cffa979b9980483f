// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"fmt"
	"strings"

	"github.com/berth-dev/berth/pkg/volume"
)

// AdoptGroup returns a volume group that somebody else has made, among the devices that
// the host shows to lvm. It changes nothing.
//
// volume.ErrNotFound: a complete report does not show a group of that UUID.
// volume.ErrIdentity: it is called otherwise than name, or two groups have the name.
// volume.ErrExists: it is a pool's already. volume.ErrPoolUnavailable: it is in a State in
// which nothing may be changed.
func (c *Client) AdoptGroup(ctx context.Context, name, uuid string) (*Group, error) {
	g, err := c.GroupByUUID(ctx, uuid)
	if err != nil {
		return nil, err
	}
	if g.Name != name {
		return nil, fmt.Errorf("volume group %s (%s): %w: it should be called %s", g.Name, g.UUID, volume.ErrIdentity, name)
	}
	for _, tag := range g.Tags {
		if pool, ours := strings.CutPrefix(tag, TagPool); ours {
			return nil, fmt.Errorf("volume group %s (%s): %w: Berth made it for the pool with UID %s", g.Name, g.UUID, volume.ErrExists, pool)
		}
	}
	return g, g.usable()
}

// GroupByUUID returns a volume group among the devices that the host shows to lvm, in
// whatever State it is, if its name means no other. volume.ErrNotFound: a complete report
// does not show it. volume.ErrIdentity: two groups have its name.
func (c *Client) GroupByUUID(ctx context.Context, uuid string) (*Group, error) {
	report, err := c.Observe(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("find volume group %s: %w", uuid, err)
	}
	g := report.Group(uuid)
	if g == nil {
		return nil, fmt.Errorf("volume group with UUID %s: %w on what this host shows to lvm", uuid, volume.ErrNotFound)
	}
	return g, report.unambiguous(g)
}

// unambiguous returns volume.ErrIdentity when another group has the name.
func (r *Report) unambiguous(g *Group) error {
	for _, other := range r.Groups {
		if other != g && other.Name == g.Name {
			return fmt.Errorf("volume group %s: %w: two have this name, %s and %s", g.Name, volume.ErrIdentity, g.UUID, other.UUID)
		}
	}
	return nil
}

// Paths are the group's devices that are there.
func (g *Group) Paths() (paths []string) {
	for _, pv := range g.PVs {
		if pv.Path != "" {
			paths = append(paths, pv.Path)
		}
	}
	return paths
}
