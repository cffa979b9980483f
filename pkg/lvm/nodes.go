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
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/volume"
)

// Nodes are the device nodes of active logical volumes.
type Nodes interface {
	// Find returns where the logical volume can be opened. ok is false when it is
	// not active; that is proven, an error is not.
	Find(ctx context.Context, id NodeID) (loc volume.Location, ok bool, err error)
	// Clear makes both ends of a volume that was never handed out read as zeroes
	// (block.EdgeBytes). What reads so already is not written to. volume.ErrInUse:
	// somebody has the node open for himself; nothing was touched.
	Clear(ctx context.Context, loc volume.Location) error
	// Wipe makes the content unreadable as the policy asks. volume.ErrInUse: somebody
	// has the node open for himself (a mount, device-mapper, us); nothing was touched.
	Wipe(ctx context.Context, loc volume.Location, policy volume.WipePolicy) error
	// WipeThin is Wipe for a thin volume that is about to be removed. Its chunks are zeroed
	// before another volume gets them, so that nobody could read them anyhow; and it takes
	// no chunk of the pool that the volume had not.
	WipeThin(ctx context.Context, loc volume.Location, policy volume.WipePolicy) error
	// ThinPool returns how full the thin pool is. ok is false when it is not active; that
	// is proven, an error is not.
	ThinPool(ctx context.Context, id NodeID) (usage dm.ThinPool, ok bool, err error)
	// HoldThinMetadata has the kernel hold a snapshot of an active thin pool's metadata, of
	// which it can hold one, and ReleaseThinMetadata gives it back: nil when none is held.
	// ThinMetadataPath is where the metadata are read. volume.ErrNotFound: the pool is not
	// active; what is held is on the disk and outlives that.
	HoldThinMetadata(ctx context.Context, pool NodeID) error
	ReleaseThinMetadata(ctx context.Context, pool NodeID) error
	ThinMetadataPath(ctx context.Context, pool NodeID) (string, error)
	// Snapshot returns how full a thick snapshot is. ok is false when it is not active; that is
	// proven, an error is not.
	Snapshot(ctx context.Context, id NodeID) (status dm.Snapshot, ok bool, err error)
	// Copy writes what is on one volume to the beginning of another, durably, and makes the
	// ends of the rest read as zeroes. Nobody else may have the second. progress is told the
	// bytes done.
	Copy(ctx context.Context, from, to volume.Location, progress func(doneBytes int64)) error
	// Raid returns how a volume with legs is. ok is false when it is not active; that is
	// proven, an error is not.
	Raid(ctx context.Context, id NodeID) (status dm.Raid, ok bool, err error)
	// InUse reports whether somebody has a volume open: a mount, or a device that lies on it.
	InUse(ctx context.Context, id NodeID) (bool, error)
	// Gone reports whether a node lies on a device that the kernel does not have any more: a disk
	// that was unplugged, though it may be plugged in again.
	Gone(ctx context.Context, loc volume.Location) (bool, error)
	// Stale reports whether an active leg lies on another device than the one with that
	// path: it was unplugged and plugged in again.
	Stale(ctx context.Context, leg NodeID, devicePath string) (bool, error)
	// Moving returns how far what lvm moves under that name ("pvmove0") has come. ok is false
	// when nothing is copied, as after a boot; that is proven, an error is not.
	Moving(ctx context.Context, groupName, groupUUID, name string) (status dm.Mirror, ok bool, err error)
	// WhileStill calls f while it holds lvm's own lock of the group, so that no command of
	// lvm changes it, and returns f's error. volume.ErrBusy: one does for a long time.
	WhileStill(ctx context.Context, groupName string, f func() error) error
	// Suspended returns the UUIDs of a group's volumes and legs of which a device is suspended:
	// reads and writes wait until somebody resumes them, which a killed lvm does not.
	Suspended(ctx context.Context, groupUUID string) (map[string]bool, error)
	// Resume lets suspended devices of a group go on, in this order, as they were. lvm
	// cannot: it would write to a leg that is suspended, and wait for itself.
	Resume(ctx context.Context, groupName, groupUUID string, lvUUIDs []string) error
	// ResumeAll lets every suspended device of a volume group go on, and what lies on them,
	// as Resume does, but for the volumes with the UUIDs in not, and returns how many there
	// were. What a command of lvm that is at work has suspended it leaves to that: it waits
	// for it, and returns volume.ErrBusy when that takes long.
	ResumeAll(ctx context.Context, groupName, groupUUID string, not []string) (resumed int, err error)
	// RemoveUnknown removes the devices of legs that are in a volume group's name in
	// device-mapper, are of no volume whose UUID is known, and are not in use: what an lvm
	// that was killed has left, in whose way the next one would find them. And it removes
	// those that stood in for a missing device (lib/activate/dev_manager.c), and are not
	// needed any more: lvm leaves them.
	RemoveUnknown(ctx context.Context, groupName, groupUUID string, known func(lvUUID string) bool) error
}

// NodeID names a logical volume in device-mapper.
type NodeID struct {
	GroupName, GroupUUID string
	Name, UUID           string
	// Layer is what device-mapper's UUID has beyond those of group and volume: nothing, but
	// for what lies below another volume (build_dm_uuid in lib/misc/lvm-string.c).
	Layer string
}

func (id NodeID) String() string { return id.GroupName + "/" + id.Name }

// HostNodes finds nodes in the host's sysfs, without starting any process. What
// identifies a node is its device-mapper UUID, which holds the UUIDs of the group
// and of the volume; its name alone proves nothing.
type HostNodes struct {
	// Root is the directory under which the host's /sys and /dev are seen: "/" on
	// the host itself.
	Root string
}

// Find implements Nodes.
//
// The path it returns is /dev/mapper/NAME where that is the right device: the
// name holds the volume's ID, so it cannot come to mean another volume between
// now and its use, as /dev/dm-N could. /dev/dm-N is made by the kernel itself and
// stands in while udev is late.
func (h HostNodes) Find(ctx context.Context, id NodeID) (volume.Location, bool, error) {
	if err := ctx.Err(); err != nil {
		return volume.Location{}, false, err
	}
	want := dmUUID(id.GroupUUID, id.UUID)
	mapper := "/dev/mapper/" + dmName(id.GroupName, id.Name)
	number, isNode, err := h.deviceNumber(mapper)
	if err != nil {
		return volume.Location{}, false, err
	}
	if isNode {
		dir := h.path("/sys/dev/block", number)
		if uuid, err := readText(filepath.Join(dir, "dm/uuid")); err == nil && uuid == want {
			return h.location(mapper, dir)
		}
	}
	return h.scan(want)
}

// scan looks at every device-mapper device.
func (h HostNodes) scan(want string) (volume.Location, bool, error) {
	dirs, err := os.ReadDir(h.path("/sys/block"))
	if err != nil {
		return volume.Location{}, false, fmt.Errorf("look for active logical volumes: %w", err)
	}
	for _, entry := range dirs {
		if !strings.HasPrefix(entry.Name(), "dm-") {
			continue
		}
		dir := h.path("/sys/block", entry.Name())
		uuid, err := readText(filepath.Join(dir, "dm/uuid"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			// Removed while we looked.
			continue
		}
		if err != nil {
			return volume.Location{}, false, fmt.Errorf("look for active logical volumes: %w", err)
		}
		if uuid != want {
			continue
		}
		path := "/dev/" + entry.Name()
		sysNumber, err := readText(filepath.Join(dir, "dev"))
		if err != nil {
			return volume.Location{}, false, fmt.Errorf("read the number of %s: %w", path, err)
		}
		number, isNode, err := h.deviceNumber(path)
		if err != nil {
			return volume.Location{}, false, err
		}
		if !isNode || number != sysNumber {
			return volume.Location{}, false, fmt.Errorf("%s is not the node of device %s", path, sysNumber)
		}
		return h.location(path, dir)
	}
	return volume.Location{}, false, nil
}

func (h HostNodes) location(path, dir string) (volume.Location, bool, error) {
	const sectorBytes = 512 // the unit of sysfs's size, whatever the device's own sector is
	text, err := readText(filepath.Join(dir, "size"))
	if err != nil {
		return volume.Location{}, false, fmt.Errorf("read the size of %s: %w", path, err)
	}
	sectors, err := strconv.ParseInt(text, 10, 64)
	if err == nil && sectors == 0 {
		return volume.Location{}, false, nil // it was made and got no table: lvm was killed in between
	}
	if err != nil || sectors < 0 {
		return volume.Location{}, false, fmt.Errorf("the size of %s is %q", path, text)
	}
	return volume.Location{Device: path, SizeBytes: sectors * sectorBytes}, true, nil
}

// deviceNumber returns "major:minor" of a block device's node, following links.
func (h HostNodes) deviceNumber(path string) (string, bool, error) {
	var st unix.Stat_t
	err := unix.Stat(h.path(path), &st)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", false, nil
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), true, nil
}

// Clear implements Nodes. Each closing of a device that was open for writing makes udev
// look at it again, so it is opened so only when there is something to clear.
func (h HostNodes) Clear(ctx context.Context, loc volume.Location) (err error) {
	look, err := block.OpenExclusiveReadOnly(h.path(loc.Device))
	if err != nil {
		return err
	}
	_, blank, err := block.BlankOnDisk(look, loc.SizeBytes)
	if err = errors.Join(err, look.Close()); err != nil || blank {
		return err
	}
	return h.Wipe(ctx, loc, volume.WipeSignatures)
}

// Wipe implements Nodes, by pkg/block. Where a volume cannot be discarded it is
// zeroed: the next owner must not read it.
func (h HostNodes) Wipe(ctx context.Context, loc volume.Location, policy volume.WipePolicy) (err error) {
	file, err := h.openToWipe(loc, policy != volume.WipeNone)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	err = block.Wipe(ctx, file, loc.SizeBytes, policy, nil)
	if errors.Is(err, block.ErrDiscardUnsupported) {
		err = block.Wipe(ctx, file, loc.SizeBytes, volume.WipeZero, nil)
	}
	return err
}

// WipeThin implements Nodes.
func (h HostNodes) WipeThin(ctx context.Context, loc volume.Location, policy volume.WipePolicy) (err error) {
	file, err := h.openToWipe(loc, policy == volume.WipeDiscard || policy == volume.WipeZero)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	switch policy {
	case volume.WipeNone, volume.WipeSignatures:
		return nil // to open it has shown that nobody uses it
	case volume.WipeDiscard:
		if err := block.Discard(ctx, file, 0, loc.SizeBytes, nil); !errors.Is(err, block.ErrDiscardUnsupported) {
			return err
		}
		return nil // the removal gives the chunks back all the same
	case volume.WipeZero:
		return block.ZeroContent(ctx, file, loc.SizeBytes)
	default:
		return fmt.Errorf("%w: policy %q", volume.ErrInvalid, policy)
	}
}

// openToWipe opens a volume's device, which proves that nobody has it. udev looks at what
// was open for writing once it is closed, and has it open while lvm is to remove it, which
// then waits and tries again: where nothing is written, it is not opened for that.
func (h HostNodes) openToWipe(loc volume.Location, writes bool) (*os.File, error) {
	if writes {
		return block.OpenExclusive(h.path(loc.Device))
	}
	return block.OpenExclusiveReadOnly(h.path(loc.Device))
}

// ThinPool implements Nodes. As soon as it has volumes, the pool is a device below the one
// with its name (lib/activate/dev_manager.c: the layer "tpool"), before it is that one.
func (h HostNodes) ThinPool(ctx context.Context, id NodeID) (dm.ThinPool, bool, error) {
	if err := ctx.Err(); err != nil {
		return dm.ThinPool{}, false, err
	}
	control, uuid := dm.Control{Root: h.Root}, dmUUID(id.GroupUUID, id.UUID)
	for _, uuid := range []string{uuid + "-tpool", uuid} {
		status, err := control.Status(uuid)
		if errors.Is(err, volume.ErrNotFound) {
			continue
		}
		if err != nil {
			return dm.ThinPool{}, false, err
		}
		table, err := control.Table(uuid)
		if errors.Is(err, volume.ErrNotFound) {
			continue // deactivated in between
		}
		if err != nil {
			return dm.ThinPool{}, false, err
		}
		usage, err := dm.ThinPoolOf(status, table)
		return usage, err == nil, err
	}
	return dm.ThinPool{}, false, nil
}

// Snapshot implements Nodes.
func (h HostNodes) Snapshot(ctx context.Context, id NodeID) (dm.Snapshot, bool, error) {
	if err := ctx.Err(); err != nil {
		return dm.Snapshot{}, false, err
	}
	status, err := (dm.Control{Root: h.Root}).Status(dmUUID(id.GroupUUID, id.UUID))
	if errors.Is(err, volume.ErrNotFound) || err == nil && len(status) == 0 {
		return dm.Snapshot{}, false, nil
	}
	if err != nil {
		return dm.Snapshot{}, false, err
	}
	s, err := dm.SnapshotOf(status)
	return s, err == nil, err
}

// Copy implements Nodes, by pkg/block.
func (h HostNodes) Copy(ctx context.Context, from, to volume.Location, progress func(doneBytes int64)) (err error) {
	source, err := block.OpenReadOnly(h.path(from.Device))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	target, err := block.OpenExclusive(h.path(to.Device))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	return block.Copy(ctx, source, target, from.SizeBytes, to.SizeBytes, progress)
}

func (h HostNodes) path(parts ...string) string {
	return filepath.Join(append([]string{h.Root, "/"}, parts...)...)
}

func readText(path string) (string, error) {
	data, err := os.ReadFile(path)
	return strings.TrimSpace(string(data)), err
}
