// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package luks

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

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

// namePrefix + a volume's ID is the name of its open device.
const namePrefix = "berth-"

// Mapping names the open device of an encrypted volume.
type Mapping struct {
	// ID of the volume, a lower-case UUID: it makes the name, so that a volume and its
	// copy, which have one header, can be open at once.
	ID string
	// UUID of the header.
	UUID string
	// Device is the path of the encrypted device on the host.
	Device string
}

// Name of the device in /dev/mapper.
func (m Mapping) Name() string { return namePrefix + m.ID }

// dmUUID is what cryptsetup calls it (lib/libdevmapper.c: dm_prepare_uuid).
func (m Mapping) dmUUID() string {
	return "CRYPT-LUKS2-" + strings.ReplaceAll(m.UUID, "-", "") + "-" + m.Name()
}

func (m Mapping) validate() error {
	if err := volume.ValidateID(m.ID); err != nil {
		return err
	}
	if !uuidPattern.MatchString(m.UUID) {
		return fmt.Errorf("%w: %q is not a lower-case UUID", volume.ErrInvalid, m.UUID)
	}
	return requirePath(m.Device)
}

// Opened is an open device.
type Opened struct {
	// Path of the device on the host, for reading and writing what is in it.
	Path      string
	SizeBytes int64
	// Suspended: reads and writes wait; somebody was killed who had suspended it.
	Suspended bool
}

// Find returns the open device. ok is false when it is not open; that is proven, an error
// is not. It starts no program.
//
// volume.ErrIdentity: a device of that name is of another header, or lies on another
// device. volume.ErrGone: it lies on one that is gone; see Close.
func (c *Client) Find(ctx context.Context, m Mapping) (opened Opened, ok bool, err error) {
	if err := m.validate(); err != nil {
		return Opened{}, false, err
	}
	if err := ctx.Err(); err != nil {
		return Opened{}, false, err
	}
	device, err := c.control().Device(m.Name())
	if errors.Is(err, volume.ErrNotFound) {
		return Opened{}, false, nil
	}
	if err != nil {
		return Opened{}, false, err
	}
	switch {
	case device.UUID != m.dmUUID():
		return Opened{}, false, fmt.Errorf("%w: device %s has the device-mapper UUID %q, wanted is %q", volume.ErrIdentity, m.Name(), device.UUID, m.dmUUID())
	case !device.Active:
		return Opened{}, false, nil // whoever opened it was killed before it had a table
	}
	opened, err = c.describe(m, device)
	if errors.Is(err, fs.ErrNotExist) {
		return Opened{}, false, fmt.Errorf("device %s is coming or going: %w", m.Name(), volume.ErrBusy)
	}
	return opened, err == nil, err
}

// describe reads sysfs about an open device, and makes sure that it lies where it should.
func (c *Client) describe(m Mapping, device dm.Device) (Opened, error) {
	number := fmt.Sprintf("%d:%d", device.Major, device.Minor)
	directory := c.path("/sys/dev/block", number)
	const sectorBytes = 512 // the unit of sysfs's size, whatever the device's own sector is
	text, err := readText(filepath.Join(directory, "size"))
	if err != nil {
		return Opened{}, fmt.Errorf("read the size of %s: %w", m.Name(), err)
	}
	sectors, err := strconv.ParseInt(text, 10, 64)
	if err != nil || sectors < 0 {
		return Opened{}, fmt.Errorf("the size of %s is %q", m.Name(), text)
	}
	below, err := c.below(directory)
	if err != nil {
		return Opened{}, fmt.Errorf("find what %s lies on: %w", m.Name(), err)
	}
	on, err := c.number(m.Device)
	if err != nil {
		return Opened{}, err
	}
	if !slices.Equal(below, []string{on}) {
		return Opened{}, fmt.Errorf("%w: %s lies on the devices %v, and the volume is on %s (%s)", volume.ErrIdentity, m.Name(), below, on, m.Device)
	}
	// A disk that was put back and got the number and the name of before knows nothing of what
	// lies on the one that is gone.
	holder := filepath.Join(c.path("/sys/dev/block", on), "holders", fmt.Sprintf("dm-%d", device.Minor))
	if _, err := os.Lstat(holder); errors.Is(err, fs.ErrNotExist) {
		return Opened{}, fmt.Errorf("%s was opened on %s, which has another disk now: %w", m.Name(), m.Device, volume.ErrGone)
	} else if err != nil {
		return Opened{}, fmt.Errorf("find what lies on %s: %w", m.Device, err)
	}
	return Opened{Path: c.node(m, device), SizeBytes: sectors * sectorBytes, Suspended: device.Suspended}, nil
}

// node is the path of an open device. Its name holds the volume's ID, so it cannot come to mean
// another volume between now and its use. /dev/dm-N is made by the kernel itself and stands in
// while udev is late.
func (c *Client) node(m Mapping, device dm.Device) string {
	path := "/dev/mapper/" + m.Name()
	if at, err := c.number(path); err != nil || at != fmt.Sprintf("%d:%d", device.Major, device.Minor) {
		path = fmt.Sprintf("/dev/dm-%d", device.Minor)
	}
	return path
}

// Node returns the path of the open device of a volume's ID, whatever it lies on; "" when it is
// not open.
func (c *Client) Node(id string) (string, error) {
	if err := volume.ValidateID(id); err != nil {
		return "", err
	}
	m := Mapping{ID: id}
	device, err := c.control().Device(m.Name())
	if errors.Is(err, volume.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return c.node(m, device), nil
}

// below returns the numbers of the devices that a device lies on, volume.ErrGone where the kernel does
// not have one of them any more: then the link to it leads nowhere.
func (c *Client) below(directory string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(directory, "slaves"))
	if err != nil {
		return nil, err
	}
	var numbers []string
	for _, entry := range entries {
		link := filepath.Join(directory, "slaves", entry.Name())
		number, err := readText(filepath.Join(link, "dev"))
		if errors.Is(err, fs.ErrNotExist) {
			if _, linkErr := os.Lstat(link); linkErr == nil {
				return nil, fmt.Errorf("%s: %w", entry.Name(), volume.ErrGone)
			}
		}
		if err != nil {
			return nil, err
		}
		numbers = append(numbers, number)
	}
	return numbers, nil
}

// number returns "major:minor" of a block device's node.
func (c *Client) number(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(c.path(path), &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", fmt.Errorf("%s is not a block device: %w", path, volume.ErrInvalid)
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
}

// Open opens the device with a key, if it is not open, and returns where. Discards are
// handed on: a thin pool gets back what is freed.
//
//   - ErrWrongKey: no key slot opens with the key.
//   - ErrNoHeader, ErrDamaged: there is no header that could be used.
//   - volume.ErrIdentity: the header has another UUID.
//   - volume.ErrInUse: somebody holds the device.
//   - volume.ErrToolMissing: the host has no cryptsetup.
//
// After all of these nothing was changed.
func (c *Client) Open(ctx context.Context, m Mapping, key Key) (Opened, error) {
	opened, ok, err := c.Find(ctx, m)
	if err != nil || ok {
		return opened, err
	}
	h, err := c.Header(ctx, m.Device)
	if err != nil {
		return Opened{}, err
	}
	if h.UUID != m.UUID {
		return Opened{}, fmt.Errorf("open %s: %w: its LUKS header has the UUID %s, recorded is %s", m.Device, volume.ErrIdentity, h.UUID, m.UUID)
	}
	// A device without a table keeps the name from cryptsetup.
	if err := c.removeInactive(m); err != nil {
		return Opened{}, err
	}
	_, err = c.withKey(ctx, []string{"open", "--type", "luks2", "--batch-mode", "--allow-discards", "--key-file", "-", m.Device, m.Name()}, key)
	if err != nil {
		return Opened{}, fmt.Errorf("open %s: %w", m.Device, err)
	}
	opened, ok, err = c.Find(ctx, m)
	if err == nil && !ok {
		err = fmt.Errorf("open %s: cryptsetup has opened it and the kernel does not show %s", m.Device, m.Name())
	}
	return opened, err
}

func (c *Client) removeInactive(m Mapping) error {
	device, err := c.control().Device(m.Name())
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return nil
	case err != nil:
		return err
	case device.Active || device.UUID != m.dmUUID():
		return nil // cryptsetup says what is wrong
	}
	return c.control().Remove(m.dmUUID())
}

// Close closes the device of a volume's ID, whatever its header. It returns nil when it is
// not open.
//
// volume.ErrInUse: it is mounted, or somebody has it open; nothing was changed.
// volume.ErrIdentity: what has the name is no open LUKS2 device.
func (c *Client) Close(ctx context.Context, id string) error {
	if err := volume.ValidateID(id); err != nil {
		return err
	}
	name := Mapping{ID: id}.Name()
	device, err := c.control().Device(name)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return nil
	case err != nil:
		return err
	case !strings.HasPrefix(device.UUID, "CRYPT-LUKS2-") || !strings.HasSuffix(device.UUID, "-"+name):
		return fmt.Errorf("close %s: %w: it has the device-mapper UUID %q", name, volume.ErrIdentity, device.UUID)
	case !device.Active:
		return c.control().Remove(device.UUID)
	}
	if device.Suspended {
		// Nothing can be flushed, and so nothing be closed, before.
		if err := c.control().Resume(device.UUID); err != nil {
			return err
		}
	}
	_, err = c.run(ctx, hostexec.Command{Name: Tool, Args: []string{"close", "--type", "luks2", name}, Timeout: plainTimeout})
	if _, gone := c.control().Device(name); errors.Is(gone, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("close %s: %w", name, err)
	}
	return fmt.Errorf("close %s: cryptsetup says that it did, and the kernel still shows it", name)
}

// Resize makes an open device as large as what is below it has room for, and returns it.
// The kernel keeps the volume's key from everybody, so that a key slot must be opened
// anew. A repeated call changes nothing. ErrWrongKey as Open.
func (c *Client) Resize(ctx context.Context, m Mapping, key Key) (Opened, error) {
	if err := m.validate(); err != nil {
		return Opened{}, err
	}
	if _, err := c.withKey(ctx, []string{"resize", "--batch-mode", "--key-file", "-", m.Name()}, key); err != nil {
		return Opened{}, fmt.Errorf("resize %s: %w", m.Name(), err)
	}
	opened, ok, err := c.Find(ctx, m)
	if err == nil && !ok {
		err = fmt.Errorf("resize %s: it is not open any more: %w", m.Name(), volume.ErrBusy)
	}
	return opened, err
}

// Suspend lets what uses the open device wait, with everything of it on the device below
// and a filesystem frozen. Resume ends it.
func (c *Client) Suspend(m Mapping) error { return c.control().Suspend(m.dmUUID()) }

// Resume lets the open device go on. It returns nil for one that is not suspended, or not
// open.
func (c *Client) Resume(m Mapping) error { return c.control().Resume(m.dmUUID()) }

// ClearEnds makes the first and last 4 MiB of an open device that was never handed out read
// as zeroes (block.EdgeBytes): behind a new header there is noise. volume.ErrInUse:
// somebody has it open for himself; nothing was touched.
func (c *Client) ClearEnds(ctx context.Context, path string) error {
	return c.host.InMountNamespace(ctx, func() (err error) {
		device, err := block.OpenExclusive(path)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, device.Close()) }()
		size, err := block.SizeBytes(device)
		if err != nil {
			return err
		}
		return block.Wipe(ctx, device, size, volume.WipeSignatures, nil)
	})
}

func (c *Client) control() dm.Control { return dm.Control{Root: c.host.Root()} }

func (c *Client) path(parts ...string) string {
	return filepath.Join(append([]string{c.host.Root()}, parts...)...)
}

func readText(path string) (string, error) {
	data, err := os.ReadFile(path)
	return strings.TrimSpace(string(data)), err
}
