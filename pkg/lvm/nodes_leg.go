// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/volume"
)

// Raid implements Nodes.
func (h HostNodes) Raid(ctx context.Context, id NodeID) (dm.Raid, bool, error) {
	if err := ctx.Err(); err != nil {
		return dm.Raid{}, false, err
	}
	status, err := dm.Control{Root: h.Root}.Status(dmUUID(id.GroupUUID, id.UUID) + id.Layer)
	if errors.Is(err, volume.ErrNotFound) || err == nil && len(status) == 0 {
		return dm.Raid{}, false, nil
	}
	if err != nil {
		return dm.Raid{}, false, err
	}
	raid, err := dm.RaidOf(status)
	return raid, err == nil, err
}

// InUse implements Nodes.
func (h HostNodes) InUse(ctx context.Context, id NodeID) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	device, err := dm.Control{Root: h.Root}.Device(dmName(id.GroupName, id.Name))
	if errors.Is(err, volume.ErrNotFound) {
		return false, nil
	}
	return err == nil && device.UUID == dmUUID(id.GroupUUID, id.UUID) && device.OpenCount > 0, err
}

// Stale implements Nodes. A device that is gone keeps its number as long as something
// lies on it, so that the one that came back has another.
func (h HostNodes) Stale(ctx context.Context, leg NodeID, devicePath string) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	table, err := dm.Control{Root: h.Root}.Table(dmUUID(leg.GroupUUID, leg.UUID))
	if errors.Is(err, volume.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	number, isNode, err := h.deviceNumber(devicePath)
	if err != nil || !isNode {
		return false, err
	}
	return staleTable(table, number), nil
}

// staleTable reports whether a linear device lies on another one than that number.
func staleTable(table []dm.Target, number string) bool {
	return slices.ContainsFunc(table, func(t dm.Target) bool {
		on, _, _ := strings.Cut(t.Status, " ")
		return on != number
	})
}

// poolLayers are those of a thin pool: the pool, what its name shows, and what it lies on.
var poolLayers = []string{"-tpool", "-pool", dataLayer, metadataLayer}

const dataLayer, metadataLayer = "-tdata", "-tmeta"

// Suspended implements Nodes.
func (h HostNodes) Suspended(ctx context.Context, groupUUID string) (map[string]bool, error) {
	suspended := map[string]bool{}
	err := h.eachOf(groupUUID, func(d mapped) error {
		if d.layer != "" && !slices.Contains(poolLayers, d.layer) {
			return nil
		}
		text, err := readText(filepath.Join(d.dir, "dm/suspended"))
		suspended[d.lvUUID] = suspended[d.lvUUID] || text == "1"
		return errors.Join(err, ctx.Err())
	})
	if err != nil {
		return nil, fmt.Errorf("look for suspended volumes: %w", err)
	}
	return suspended, nil
}

// Resume implements Nodes, under lvm's own lock of the volume group: an lvm that works has
// suspended what it will resume.
func (h HostNodes) Resume(ctx context.Context, groupName, groupUUID string, lvUUIDs []string) error {
	unlock, err := lockGroup(h.Root, groupName)
	if err != nil {
		return fmt.Errorf("lock volume group %s: %w", groupName, err)
	}
	defer unlock()
	for _, lvUUID := range lvUUIDs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := (dm.Control{Root: h.Root}).Resume(dmUUID(groupUUID, lvUUID)); err != nil {
			return err
		}
	}
	return nil
}

// mapped is a device of device-mapper that is a volume or a leg of a group, or a layer of
// one.
type mapped struct {
	// lvUUID is what lvm knows it by, name what device-mapper calls it.
	lvUUID, name string
	// layer is what device-mapper's UUID has beyond those of group and volume.
	layer string
	// dir is its place in sysfs.
	dir string
}

// eachOf calls f for each device of a group.
func (h HostNodes) eachOf(groupUUID string, f func(mapped) error) error {
	dirs, err := os.ReadDir(h.path("/sys/block"))
	if err != nil {
		return err
	}
	prefix := dmUUID(groupUUID, "")
	for _, entry := range dirs {
		if !strings.HasPrefix(entry.Name(), "dm-") {
			continue
		}
		dir := h.path("/sys/block", entry.Name())
		uuid, err := readText(filepath.Join(dir, "dm/uuid"))
		name, nameErr := readText(filepath.Join(dir, "dm/name"))
		lv, ours := strings.CutPrefix(uuid, prefix)
		if err = errors.Join(err, nameErr); err == nil && ours && len(lv) >= uuidChars {
			err = f(mapped{lvUUID: formatUUID(lv[:uuidChars]), name: name, layer: lv[uuidChars:], dir: dir})
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) { // not removed while we looked
			return err
		}
	}
	return nil
}

// RemoveUnknown implements Nodes, under lvm's own lock of the volume group.
func (h HostNodes) RemoveUnknown(ctx context.Context, groupName, groupUUID string, known func(lvUUID string) bool) error {
	unknown, err := h.unknownLegs(groupName, groupUUID, known)
	if err != nil || len(unknown) == 0 {
		return err
	}
	unlock, err := lockGroup(h.Root, groupName)
	if err != nil {
		return fmt.Errorf("lock volume group %s: %w", groupName, err)
	}
	defer unlock()
	var errs []error
	for _, uuid := range unknown {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		// One that is in use is somebody's.
		if err := (dm.Control{Root: h.Root}).Remove(uuid); err != nil && !errors.Is(err, volume.ErrInUse) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// unknownLegs returns the device-mapper UUIDs of what RemoveUnknown removes.
func (h HostNodes) unknownLegs(groupName, groupUUID string, known func(lvUUID string) bool) (uuids []string, err error) {
	if err := ValidateGroupName(groupName); err != nil {
		return nil, err
	}
	err = h.eachOf(groupUUID, func(d mapped) error {
		inner, inGroup := strings.CutPrefix(d.name, dmName(groupName, ""))
		switch {
		case !inGroup:
		case d.layer == "" && legName.MatchString(inner) && !known(d.lvUUID),
			strings.HasPrefix(d.layer, "-missing_") && strings.HasSuffix(inner, d.layer) && legName.MatchString(strings.TrimSuffix(inner, d.layer)):
			uuids = append(uuids, dmUUID(groupUUID, d.lvUUID)+d.layer)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for legs: %w", err)
	}
	return uuids, nil
}
