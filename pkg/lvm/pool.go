// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/berth-dev/berth/pkg/volume"
)

// GroupSpec is a wish for a volume group.
type GroupSpec struct {
	// Name of the volume group on the host.
	Name string
	// PoolUID of the Pool it belongs to: what the group is found by again.
	PoolUID string
	// PoolSet is a name for people; it may be empty.
	PoolSet string
	// Devices are the paths of the disks right now. The caller has claimed each of
	// them, and has proven it blank a moment ago.
	Devices []string
	// ExtentBytes is the size of an extent, a power of two; 0 means 4 MiB.
	ExtentBytes int64
	// Partial lets ExtendGroup add devices to a group of which some are missing, so that
	// they may take their place.
	Partial bool
}

const (
	defaultExtentBytes = 4 << 20
	// metadataBytes is the size of the metadata area at the start of each disk. The
	// text of the metadata is kept twice while it changes, and takes about 0.3 to
	// 0.5 KiB for each linear volume, more for others: 64 MiB has room for far more
	// than 5,000 volumes of any kind. lvm's default of 1 MiB has not.
	metadataSize  = "64m"
	dataAlignment = "1m"
)

// CreateGroup makes a volume group on the devices, or finds the one that an
// earlier call made for the same pool; both return the same. It works on the
// host's view of its devices, with the host's lvm.conf and devices file, into
// which lvm then puts the devices by itself.
//
// Nothing is forced. lvm runs without a terminal and is never told yes, so it
// refuses a device on which it sees anything: volume.ErrNotBlank. volume.ErrInUse:
// somebody holds one of the devices. volume.ErrExists: the name, or a device,
// belongs to another volume group. None of these has changed the group of anybody;
// a device that was already prepared stays an empty physical volume of this pool
// and is used when the call is repeated.
func (c *Client) CreateGroup(ctx context.Context, spec GroupSpec) (*Group, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	report, err := c.Observe(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("create volume group %s: %w", spec.Name, err)
	}
	found, err := report.ofPool(spec.PoolUID)
	if err != nil {
		return nil, fmt.Errorf("create volume group %s: %w", spec.Name, err)
	}
	if found != nil {
		if err := found.matches(spec); err != nil {
			return nil, err
		}
		return found, c.makeDurable(found)
	}
	for _, g := range report.Groups {
		if g.Name == spec.Name {
			return nil, fmt.Errorf("create volume group %s: %w: one with UUID %s and tags %v has this name", spec.Name, volume.ErrExists, g.UUID, g.Tags)
		}
	}
	if err := c.prepare(ctx, report, spec.PoolUID, spec.Devices); err != nil {
		return nil, fmt.Errorf("create volume group %s: %w", spec.Name, err)
	}
	extent := spec.ExtentBytes
	if extent == 0 {
		extent = defaultExtentBytes
	}
	args := []string{"vgcreate", "--physicalextentsize", fmt.Sprintf("%db", extent), "--addtag", TagPool + spec.PoolUID}
	if spec.PoolSet != "" {
		args = append(args, "--addtag", TagPoolSet+tagText(spec.PoolSet))
	}
	runErr := c.single(ctx, append(append(args, spec.Name), spec.Devices...)...)
	return c.confirm(ctx, "create", spec, runErr)
}

// ExtendGroup adds devices to a volume group of ours; those that it has already
// are left alone. What CreateGroup says of devices holds here too.
// volume.ErrIdentity: the group with that UUID is not the pool's.
func (c *Client) ExtendGroup(ctx context.Context, groupUUID string, spec GroupSpec) (*Group, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	report, err := c.Observe(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("extend volume group %s: %w", spec.Name, err)
	}
	g, err := report.owned(groupUUID, spec.PoolUID)
	if err != nil && spec.allows(g) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("extend volume group %s: %w", spec.Name, err)
	}
	missing := slices.DeleteFunc(slices.Clone(spec.Devices), g.has)
	if len(missing) == 0 {
		return g, c.makeDurable(g)
	}
	if err := c.prepare(ctx, report, spec.PoolUID, missing); err != nil {
		return nil, fmt.Errorf("extend volume group %s: %w", g.Name, err)
	}
	runErr := c.single(ctx, append([]string{"vgextend", g.Name}, missing...)...)
	return c.confirm(ctx, "extend", spec, runErr)
}

// FindGroup returns the volume group of a pool, by its tag, on the devices that
// the host shows to lvm, in whatever State it is. volume.ErrNotFound: a complete
// report does not show it; its disks may be absent, so this says nothing of
// whether it was ever made. volume.ErrIdentity: there are two.
func (c *Client) FindGroup(ctx context.Context, poolUID string) (*Group, error) {
	report, err := c.Observe(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("find the volume group of pool %s: %w", poolUID, err)
	}
	g, err := report.ofPool(poolUID)
	if err == nil && g == nil {
		err = volume.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("find the volume group of pool %s: %w", poolUID, err)
	}
	return g, nil
}

// RemoveGroup removes a volume group of ours that holds no logical volume, and
// makes its devices blank of lvm. It returns nil when none of it was there. lvm sees only
// the devices given, or, when there are none, what the host lets it see: a disk that the
// group has lost may hold its metadata of then, of which lvm makes the group anew as soon
// as it is removed.
// volume.ErrInUse: there are volumes in it, anybody's. volume.ErrPoolUnavailable:
// some of its devices are not there.
func (c *Client) RemoveGroup(ctx context.Context, groupUUID, poolUID string, devices []string) error {
	if err := c.removeGroup(ctx, groupUUID, poolUID, devices); err != nil {
		return fmt.Errorf("remove the volume group of pool %s: %w", poolUID, err)
	}
	return nil
}

func (c *Client) removeGroup(ctx context.Context, groupUUID, poolUID string, devices []string) error {
	report, err := c.Observe(ctx, devices)
	if err != nil {
		return err
	}
	if report.Group(groupUUID) != nil {
		g, err := report.owned(groupUUID, poolUID)
		if err != nil {
			return err
		}
		if err := c.removeThinPool(ctx, g, devices); err != nil {
			return err
		}
		// Without --yes: should a volume have come into it, lvm asks, and nobody answers.
		runErr := c.single(ctx, seeing(devices, "", "vgremove", "--select", "vg_uuid="+groupUUID)...)
		if report, err = c.Observe(ctx, devices); err != nil {
			return errors.Join(runErr, err)
		}
		if report.Group(groupUUID) != nil {
			return errors.Join(fmt.Errorf("volume group %s is still there", g.Name), runErr)
		}
	}
	return c.unprepare(ctx, report, poolUID, devices)
}

// seeing adds a configuration to a command: that lvm sees only these devices, if there are
// any, and what else it is told.
func seeing(devices []string, config string, command ...string) []string {
	if len(devices) > 0 {
		config = onlyDevices(devices) + config
	}
	if config == "" {
		return command
	}
	return slices.Insert(command, 1, "--config", config)
}

// removeThinPool removes the group's thin pool, if that is the only volume in it.
// volume.ErrInUse: there are others.
func (c *Client) removeThinPool(ctx context.Context, g *Group, devices []string) error {
	pool, err := g.thinPool()
	if err != nil {
		return fmt.Errorf("%w: %w", volume.ErrInUse, err)
	}
	if pool == nil || g.lvCount > 1 {
		if g.lvCount > 0 {
			return fmt.Errorf("%w: volume group %s holds %d logical volumes", volume.ErrInUse, g.Name, g.lvCount)
		}
		return nil
	}
	// Not active, and without --yes: should a volume have come into it, lvm asks whether to
	// remove that too, and nobody answers.
	one := selectVolumes(g.UUID, "", []string{pool.UUID})
	if err := c.single(ctx, seeing(devices, "activation{"+withoutUdev+"}", "lvchange", "--activate", "n", "--select", one)...); err != nil {
		return fmt.Errorf("deactivate thin pool %s/%s: %w", g.Name, pool.Name, err)
	}
	if err := c.single(ctx, seeing(devices, "", "lvremove", "--select", one)...); err != nil {
		return fmt.Errorf("remove thin pool %s/%s: %w", g.Name, pool.Name, err)
	}
	return nil
}

// unprepare takes the label off the devices that were prepared for the pool and
// are in no volume group.
func (c *Client) unprepare(ctx context.Context, report *Report, poolUID string, devices []string) error {
	ours := func(pv PhysicalVolume) bool { return preparedFor(pv.UUID, poolUID) && pv.Path != "" }
	if !slices.ContainsFunc(report.Orphans, ours) {
		return nil
	}
	var errs []error
	for _, pv := range report.Orphans {
		if ours(pv) {
			errs = append(errs, c.single(ctx, seeing(devices, "", "pvremove", pv.Path)...))
		}
	}
	report, err := c.Observe(ctx, devices)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	if i := slices.IndexFunc(report.Orphans, ours); i >= 0 {
		return errors.Join(append(errs, fmt.Errorf("%s still is a physical volume", report.Orphans[i].Path))...)
	}
	return nil
}

// prepare makes physical volumes of devices, one by one, each under a UUID that
// shows for which pool: so an orphan that a crash left behind is known as ours.
func (c *Client) prepare(ctx context.Context, report *Report, poolUID string, devices []string) error {
	for _, path := range devices {
		for _, g := range report.Groups {
			if g.has(path) {
				return fmt.Errorf("%s: %w: it belongs to volume group %s", path, volume.ErrExists, g.Name)
			}
		}
		i := slices.IndexFunc(report.Orphans, func(pv PhysicalVolume) bool { return pv.Path == path })
		if i >= 0 && preparedFor(report.Orphans[i].UUID, poolUID) {
			continue
		}
		if i >= 0 {
			return fmt.Errorf("%s: %w: it is a physical volume that we did not make", path, volume.ErrNotBlank)
		}
		err := c.single(ctx, "pvcreate",
			// Whatever the host's lvm.conf says, look for signatures of all kinds first.
			"--config", "allocation{use_blkid_wiping=1}",
			"--uuid", newPVUUID(poolUID), "--norestorefile",
			"--metadatasize", metadataSize, "--dataalignment", dataAlignment, path)
		if err != nil {
			return fmt.Errorf("prepare %s: %w", path, err)
		}
	}
	return nil
}

// confirm observes what vgcreate or vgextend did; what they said only explains.
func (c *Client) confirm(ctx context.Context, what string, spec GroupSpec, runErr error) (*Group, error) {
	report, err := c.Observe(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("%s volume group %s: the outcome is not known: %w", what, spec.Name, errors.Join(runErr, err))
	}
	g, err := report.ofPool(spec.PoolUID)
	if err == nil && g != nil {
		if err = g.matches(spec); err == nil {
			return g, c.makeDurable(g)
		}
	}
	if runErr == nil {
		runErr = errors.New("lvm reported success, and yet it is not there")
	}
	return nil, fmt.Errorf("%s volume group %s: %w", what, spec.Name, errors.Join(runErr, err))
}

// ofPool returns the one group with the pool's tag, or nil.
func (r *Report) ofPool(poolUID string) (*Group, error) {
	var found *Group
	for _, g := range r.Groups {
		if !slices.Contains(g.Tags, TagPool+poolUID) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%w: the volume groups %s (%s) and %s (%s) are both tagged %s",
				volume.ErrIdentity, found.Name, found.UUID, g.Name, g.UUID, TagPool+poolUID)
		}
		found = g
	}
	return found, nil
}

// owned returns the group with the UUID if it may be changed: it has the pool's
// tag, it is ready, and its name means no other group.
func (r *Report) owned(groupUUID, poolUID string) (*Group, error) {
	g := r.Group(groupUUID)
	if g == nil {
		return nil, fmt.Errorf("%w: no volume group with UUID %s", volume.ErrPoolUnavailable, groupUUID)
	}
	if !slices.Contains(g.Tags, TagPool+poolUID) {
		return nil, fmt.Errorf("volume group %s (%s): %w: it has no tag %s", g.Name, g.UUID, volume.ErrIdentity, TagPool+poolUID)
	}
	if err := r.unambiguous(g); err != nil {
		return nil, err
	}
	return g, g.usable()
}

// matches returns volume.ErrExists unless the group is what the spec asks for; it
// may have more devices.
func (g *Group) matches(spec GroupSpec) error {
	if g.Name != spec.Name {
		return fmt.Errorf("volume group %s (%s): %w: it is tagged %s and should be called %s", g.Name, g.UUID, volume.ErrExists, TagPool+spec.PoolUID, spec.Name)
	}
	if err := g.usable(); err != nil && !spec.allows(g) {
		return err
	}
	for _, path := range spec.Devices {
		if !g.has(path) {
			return fmt.Errorf("volume group %s (%s): %w: %s is not among its devices", g.Name, g.UUID, volume.ErrExists, path)
		}
	}
	return nil
}

// allows reports whether the group may be changed though devices are missing.
func (s GroupSpec) allows(g *Group) bool {
	return s.Partial && g != nil && g.State() == StatePartial
}

func (g *Group) has(path string) bool {
	return slices.ContainsFunc(g.PVs, func(pv PhysicalVolume) bool { return pv.Path == path })
}

func (s GroupSpec) validate() error {
	if err := ValidateGroupName(s.Name); err != nil {
		return err
	}
	if err := volume.ValidateID(s.PoolUID); err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	if len(s.Devices) == 0 {
		return fmt.Errorf("%w: volume group %s needs at least one device", volume.ErrInvalid, s.Name)
	}
	if e := s.ExtentBytes; e < 0 || e&(e-1) != 0 {
		return fmt.Errorf("%w: extents of %d bytes: a power of two is wanted", volume.ErrInvalid, e)
	}
	return validatePaths(s.Devices)
}

const (
	uuidAlphabet  = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	uuidChars     = 32
	uuidPoolChars = 20
)

// newPVUUID returns a new UUID in LVM's form. Its first part comes from the pool,
// the rest by chance.
func newPVUUID(poolUID string) string {
	var random [32]byte
	_, _ = rand.Read(random[:]) // Never fails (crypto/rand).
	return formatUUID(poolChars(poolUID) + letters(random, uuidChars-uuidPoolChars))
}

// preparedFor reports whether newPVUUID made this UUID for the pool.
func preparedFor(pvUUID, poolUID string) bool {
	return strings.HasPrefix(strings.ReplaceAll(pvUUID, "-", ""), poolChars(poolUID))
}

func poolChars(poolUID string) string {
	return letters(sha256.Sum256([]byte("berth.dev/pool\x00"+poolUID)), uuidPoolChars)
}

func letters(seed [32]byte, n int) string {
	number, base, digit := new(big.Int).SetBytes(seed[:]), big.NewInt(int64(len(uuidAlphabet))), new(big.Int)
	text := make([]byte, n)
	for i := range text {
		number.DivMod(number, base, digit)
		text[i] = uuidAlphabet[digit.Int64()]
	}
	return string(text)
}

func formatUUID(chars string) string {
	var b strings.Builder
	for i, c := range chars {
		switch i {
		case 6, 10, 14, 18, 22, 26:
			b.WriteByte('-')
		}
		b.WriteRune(c)
	}
	return b.String()
}
