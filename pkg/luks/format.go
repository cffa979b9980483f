// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package luks

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

// Subsystem is what headers that are made here say of who made them.
const Subsystem = "berth.dev"

// lockTimeout bounds the wait for the advisory lock of the device, which udev holds for
// some milliseconds while it looks.
const lockTimeout = 10 * time.Second

var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// ContentType is how libblkid names an encrypted device.
const ContentType = "crypto_LUKS"

// FormatRequest is a wish for an encrypted device.
type FormatRequest struct {
	// Device is the path of the block device on the host. The caller has just proven
	// that it is the right one, and that the record says never handed out.
	Device string
	// UUID the header shall have, in lower case.
	UUID string
	// Label is for people; what is longer than 47 bytes is cut.
	Label string
	Key   Key
	// Begin is called once the device was proven blank and before the first byte is
	// written; it keeps durably that the format was begun. An error of it stops the format.
	Begin func(context.Context) error
	// Begun is true when the record says that Begin was called before for this device,
	// and that it was handed to nobody since. What is on it is then the remains of a
	// format that was killed, or a header without use.
	Begun bool
}

// Format writes a new header with one key slot, and returns when it was observed on the
// device. What it makes can be opened; what is in it reads as noise.
//
//   - volume.ErrNotBlank: there is content that this volume's format did not leave.
//   - volume.ErrInUse: somebody holds the device.
//   - volume.ErrInvalid: a bad UUID or key, or a device with no room behind the header.
//   - volume.ErrToolMissing: the host has no cryptsetup.
//
// After all of these nothing was changed. Any other error leaves the outcome open; call
// again, with Begun as the record says.
func (c *Client) Format(ctx context.Context, req FormatRequest) error {
	if err := c.format(ctx, req); err != nil {
		return fmt.Errorf("encrypt %s: %w", req.Device, err)
	}
	return nil
}

func (c *Client) format(ctx context.Context, req FormatRequest) error {
	if err := errors.Join(requirePath(req.Device), req.Key.Validate()); err != nil {
		return err
	}
	if !uuidPattern.MatchString(req.UUID) {
		return fmt.Errorf("%w: %q is not a lower-case UUID", volume.ErrInvalid, req.UUID)
	}
	if err := c.Require(ctx); err != nil {
		return err
	}
	unlock, err := c.lock(ctx, req.Device)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.prove(ctx, req); err != nil {
		return err
	}
	if !req.Begun && req.Begin != nil {
		if err := req.Begin(ctx); err != nil {
			return fmt.Errorf("before luksFormat: %w", err)
		}
	}
	const sectorBytes = 512
	args := slices.Concat([]string{"luksFormat", "--batch-mode", "--type", "luks2"}, derivation, []string{
		"--cipher", "aes-xts-plain64", "--key-size", "512", "--hash", "sha256",
		"--offset", strconv.Itoa(HeaderBytes / sectorBytes),
		"--uuid", req.UUID, "--subsystem", Subsystem, "--label", labelOf(req.Label),
		"--key-file", "-", req.Device,
	})
	if _, err := c.withKey(ctx, args, req.Key); err != nil {
		return err
	}
	h, err := c.Header(ctx, req.Device)
	if err != nil {
		return fmt.Errorf("after luksFormat: %w", err)
	}
	if h.UUID != req.UUID || len(h.Keyslots) != 1 || h.DataOffsetBytes != HeaderBytes {
		return fmt.Errorf("after luksFormat: %w: found UUID %s, key slots %v, data at byte %d", volume.ErrIdentity, h.UUID, h.Keyslots, h.DataOffsetBytes)
	}
	return nil
}

// notInLabel is what a label shall not hold, so that no program takes it for something else.
var notInLabel = regexp.MustCompile(`[^A-Za-z0-9_.-]|^-`)

func labelOf(text string) string {
	text = notInLabel.ReplaceAllString(text, "_")
	return text[:min(len(text), lengthLabel-1)]
}

func (c *Client) lock(ctx context.Context, device string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	err = c.host.InMountNamespace(ctx, func() error {
		lock, err := block.LockContext(ctx, device)
		if err == nil {
			unlock = func() { _ = lock.Close() } // read-only: nothing to lose
		}
		return err
	})
	return unlock, err
}

// prove decides whether the header may be written. It holds the device exclusively while
// it looks, and only reads.
func (c *Client) prove(ctx context.Context, req FormatRequest) error {
	var offset int64
	var blank bool
	err := c.host.InMountNamespace(ctx, func() (err error) {
		device, err := block.OpenExclusiveReadOnly(req.Device)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, device.Close()) }()
		size, err := block.SizeBytes(device)
		if err != nil {
			return err
		}
		if size <= HeaderBytes {
			return fmt.Errorf("%w: it has %d bytes, and the header takes %d", volume.ErrInvalid, size, HeaderBytes)
		}
		offset, blank, err = block.BlankOnDisk(device, size)
		return err
	})
	switch {
	case err != nil || blank:
		return err
	case !req.Begun:
		return fmt.Errorf("%w: there is data at offset %d", volume.ErrNotBlank, offset)
	}
	// What the record calls remains is looked at once more, by libblkid: this volume's format
	// leaves no signature but its own, so that any other is somebody's who came after us.
	content, err := (block.Prober{Runner: c.host, HostRoot: c.host.Root()}).Probe(ctx, req.Device)
	if err != nil {
		return err
	}
	if content.Ambivalent || content.PartitionTable != "" || content.Found && (content.Type != ContentType || content.UUID != req.UUID) {
		return fmt.Errorf("%w: it holds %s%s with UUID %q, which this volume's format did not leave", volume.ErrNotBlank, content.Type, content.PartitionTable, content.UUID)
	}
	return nil
}
