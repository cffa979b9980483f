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
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/volume"
)

// InstantLimit is how long the volumes of a group snapshot may stand still. Most of it is
// what their filesystems need to write what is in memory.
const InstantLimit = 5 * time.Second

// Instants takes thin snapshots that lvm has made anew, all at one instant. HostInstants is
// one; who must not leave volumes standing still when he is killed uses it in a process of
// its own.
type Instants interface {
	// Take copies each origin into its snapshot, in whose place in the pool another copy
	// was. It returns nil only when none of the origins was written to between the first
	// copy and the last. On any error the snapshots hold something else, or nothing, and the
	// call may be repeated. In either case no volume stands still when it has returned.
	//
	// volume.ErrBusy: a command of lvm holds the group, or has changed it. volume.ErrInUse:
	// a snapshot is active. volume.ErrPoolUnavailable: the pool is not active.
	// dm.ErrInstantOver: it took too long.
	Take(ctx context.Context, i Instant) error
}

// Instant says what is copied, and in which state of the volume group that holds.
type Instant struct {
	GroupName string `json:"groupName"`
	GroupUUID string `json:"groupUUID"`
	// Seqno is the generation of the group's metadata in which the numbers below are
	// those, and Devices are where it is.
	Seqno   uint64   `json:"seqno"`
	Devices []string `json:"devices"`
	// PoolUUID is the thin pool's.
	PoolUUID string        `json:"poolUUID"`
	Copies   []InstantCopy `json:"copies"`
}

// InstantCopy is one volume of an Instant: the UUIDs by which lvm knows origin and snapshot,
// and the numbers by which the pool does.
type InstantCopy struct {
	OriginUUID   string `json:"originUUID"`
	SnapshotUUID string `json:"snapshotUUID"`
	Origin       int64  `json:"origin"`
	Snapshot     int64  `json:"snapshot"`
}

// HostInstants takes instants on the host whose /dev, /sys and lock files are seen under
// Root, by messages to the thin pool (dm.Instant).
type HostInstants struct{ Root string }

// Take implements Instants, under lvm's own lock of the volume group: as long as it is held
// no command of lvm changes the group, and so no number in the pool comes to mean another
// volume.
func (h HostInstants) Take(ctx context.Context, i Instant) error {
	unlock, err := lockGroup(h.Root, i.GroupName)
	if err != nil {
		return fmt.Errorf("lock volume group %s: %w", i.GroupName, err)
	}
	defer unlock()
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("%w: nothing was begun: %w", dm.ErrInstantOver, err)
	}
	if err := i.isCurrent(DiskSeqno(h.Root)); err != nil {
		return err
	}
	nodes, control := HostNodes(h), dm.Control(h)
	still := dm.Instant{Limit: InstantLimit}
	pool := dmUUID(i.GroupUUID, i.PoolUUID) + "-tpool"
	if _, err := control.Suspended(pool); err != nil {
		if errors.Is(err, volume.ErrNotFound) {
			err = fmt.Errorf("%w: the thin pool of volume group %s is not active", volume.ErrPoolUnavailable, i.GroupName)
		}
		return err
	}
	for _, c := range i.Copies {
		devices, err := nodes.whatToSuspend(i.GroupUUID, c)
		if err != nil {
			return err
		}
		for _, uuid := range devices {
			if !slices.Contains(still.Devices, uuid) {
				still.Devices = append(still.Devices, uuid)
			}
		}
		number := strconv.FormatInt(c.Snapshot, 10)
		still.Messages = append(still.Messages,
			// An attempt that was cut short may have come as far as this.
			dm.TargetMessage{Device: pool, Text: "delete " + number, MayBeGone: true},
			dm.TargetMessage{Device: pool, Text: "create_snap " + number + " " + strconv.FormatInt(c.Origin, 10)})
	}
	return still.Take(ctx, control)
}

// isCurrent returns volume.ErrBusy unless the metadata on all devices is of the generation
// that the instant is about.
func (i Instant) isCurrent(read SeqnoReader) error {
	copies := 0
	for _, path := range i.Devices {
		uuid, seqno, ok, err := read(path)
		switch {
		case err != nil:
			return fmt.Errorf("read the generation of volume group %s on %s: %w", i.GroupName, path, err)
		case !ok:
		case uuid != i.GroupUUID || seqno != i.Seqno:
			return fmt.Errorf("volume group %s: %w: somebody has changed it: generation %d is on %s, and %d was expected", i.GroupName, volume.ErrBusy, seqno, path, i.Seqno)
		default:
			copies++
		}
	}
	if copies == 0 {
		return fmt.Errorf("volume group %s: %w: its generation is on none of %q", i.GroupName, volume.ErrPoolUnavailable, i.Devices)
	}
	return nil
}

// whatToSuspend returns device-mapper's UUIDs of an origin and of what lies on it, what lies
// highest first: nothing when it is not active. The kernel must know the origin by the same
// number as lvm, and must not know the snapshot.
func (h HostNodes) whatToSuspend(groupUUID string, c InstantCopy) ([]string, error) {
	control := dm.Control(h)
	snapshot, origin := dmUUID(groupUUID, c.SnapshotUUID), dmUUID(groupUUID, c.OriginUUID)
	if _, err := control.Suspended(snapshot); err == nil {
		return nil, fmt.Errorf("snapshot %s: %w: it is active", c.SnapshotUUID, volume.ErrInUse)
	} else if !errors.Is(err, volume.ErrNotFound) {
		return nil, err
	}
	table, err := control.Table(origin)
	if errors.Is(err, volume.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if number, err := thinNumber(table); err != nil || number != c.Origin {
		return nil, fmt.Errorf("volume %s: %w: lvm knows it as number %d of its pool, and the kernel as %d (%w)", c.OriginUUID, volume.ErrIdentity, c.Origin, number, err)
	}
	return h.withHolders(origin)
}

// thinNumber reads the number in its pool from the table of a thin volume: the pool's
// device, and the number (drivers/md/dm-thin.c: thin_ctr).
func thinNumber(table []dm.Target) (int64, error) {
	if len(table) != 1 || table[0].Type != "thin" {
		return 0, fmt.Errorf("the device is no thin volume: it has %d targets (%+v)", len(table), table)
	}
	words := strings.Fields(table[0].Status)
	if len(words) != 2 {
		return 0, fmt.Errorf("the table %q of a thin volume has %d words, and not two", table[0].Status, len(words))
	}
	return strconv.ParseInt(words[1], 10, 64)
}

// withHolders returns the UUIDs of a device of device-mapper and of those that lie on it,
// what lies highest first: a filesystem is mounted from that.
func (h HostNodes) withHolders(uuid string) ([]string, error) {
	all, err := h.mappedDevices()
	if err != nil {
		return nil, err
	}
	var order []string
	var add func(name string)
	add = func(name string) {
		for holder, d := range all {
			if slices.Contains(d.lower, name) {
				add(holder)
			}
		}
		if u := all[name].uuid; u != "" && !slices.Contains(order, u) {
			order = append(order, u)
		}
	}
	for name, d := range all {
		if d.uuid == uuid {
			add(name)
		}
	}
	return order, nil
}

// mappedDevice is a device of device-mapper as sysfs shows it.
type mappedDevice struct {
	uuid string
	// lower are the kernel's names of the devices that it lies on.
	lower     []string
	suspended bool
}

// mappedDevices returns all devices of device-mapper, by the kernel's names.
func (h HostNodes) mappedDevices() (map[string]mappedDevice, error) {
	dirs, err := os.ReadDir(h.path("/sys/block"))
	if err != nil {
		return nil, fmt.Errorf("look for devices of device-mapper: %w", err)
	}
	all := map[string]mappedDevice{}
	for _, entry := range dirs {
		if !strings.HasPrefix(entry.Name(), "dm-") {
			continue
		}
		dir := h.path("/sys/block", entry.Name())
		uuid, uuidErr := readText(filepath.Join(dir, "dm/uuid"))
		suspended, suspendedErr := readText(filepath.Join(dir, "dm/suspended"))
		slaves, slavesErr := os.ReadDir(filepath.Join(dir, "slaves"))
		if err := errors.Join(uuidErr, suspendedErr, slavesErr); isGone(err) {
			continue // removed while we looked
		} else if err != nil {
			return nil, fmt.Errorf("look for devices of device-mapper: %w", err)
		}
		d := mappedDevice{uuid: uuid, suspended: suspended == "1"}
		for _, slave := range slaves {
			d.lower = append(d.lower, slave.Name())
		}
		all[entry.Name()] = d
	}
	return all, nil
}

// ResumeAll implements Nodes.
func (h HostNodes) ResumeAll(ctx context.Context, groupName, groupUUID string, not []string) (resumed int, err error) {
	stuck, err := h.stuck(groupUUID, not)
	if err != nil || len(stuck) == 0 {
		return 0, err
	}
	unlock, err := lockGroup(h.Root, groupName)
	if err != nil {
		return 0, fmt.Errorf("resume the volumes of %s: lock the volume group: %w", groupName, err)
	}
	defer unlock()
	// Looked at again: what had suspended them before the lock may have gone on.
	if stuck, err = h.stuck(groupUUID, not); err != nil {
		return 0, err
	}
	for _, uuid := range stuck {
		if err := ctx.Err(); err != nil {
			return resumed, err
		}
		if err := dm.Control(h).Resume(uuid); err != nil {
			return resumed, err
		}
		resumed++
	}
	return resumed, nil
}

// stuck returns the UUIDs of the suspended devices of a group but for some volumes, and of
// those that lie on its devices, what lies lowest first: what goes on writes to what is
// below.
func (h HostNodes) stuck(groupUUID string, not []string) ([]string, error) {
	all, err := h.mappedDevices()
	if err != nil {
		return nil, err
	}
	prefix := dmUUID(groupUUID, "")
	isOf := func(uuid string) bool {
		return strings.HasPrefix(uuid, prefix) &&
			!slices.ContainsFunc(not, func(lvUUID string) bool { return strings.HasPrefix(uuid, dmUUID(groupUUID, lvUUID)) })
	}
	ours := map[string]bool{}
	var order []string
	var add func(name string) bool
	add = func(name string) bool {
		if known, seen := ours[name]; seen {
			return known
		}
		d, mapped := all[name]
		is := mapped && isOf(d.uuid)
		ours[name] = is
		for _, lower := range d.lower {
			if add(lower) && !strings.HasPrefix(d.uuid, prefix) {
				is = true
			}
		}
		ours[name] = is
		if is && d.suspended {
			order = append(order, d.uuid)
		}
		return is
	}
	for name := range all {
		add(name)
	}
	return order, nil
}

func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}
