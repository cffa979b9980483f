// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package luks

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

// Tool is the program of the host that is driven.
const Tool = "cryptsetup"

// HeaderBytes is how much of a device's start the header and its key slots take. It is
// cryptsetup's own default for LUKS2, and is asked for by name all the same. It is
// volume.EncryptionLUKS2's OverheadBytes.
const HeaderBytes = 16 << 20

// longestKeyBytes of a key: what cryptsetup takes for a passphrase that is typed
// (lib/utils_crypt.h: MAX_PASSPHRASE), so that a person can open the device too.
const longestKeyBytes = 512

// ErrWrongKey: no key slot opens with that key. Nothing was changed. It is a volume.ErrKey.
var ErrWrongKey = fmt.Errorf("%w: no key slot takes this one", volume.ErrKey)

// Host is where the devices are; *hostexec.Host implements it.
type Host interface {
	// Run runs a program of the host.
	Run(ctx context.Context, c hostexec.Command) (hostexec.Result, error)
	// LookPath finds a program of the host; volume.ErrToolMissing when it has none.
	LookPath(ctx context.Context, name string) (string, error)
	// Root is the directory under which this process sees the host's files.
	Root() string
	// InMountNamespace runs f on a thread in the host's mount namespace.
	InMountNamespace(ctx context.Context, f func() error) error
}

// Client drives the host's cryptsetup. It is safe for concurrent use; the caller keeps
// calls for one device apart.
type Client struct {
	host Host
	// deriving holds one token: who has it may derive a key.
	deriving chan struct{}
}

// NewClient returns a Client of the host's devices.
func NewClient(host Host) *Client { return &Client{host: host, deriving: make(chan struct{}, 1)} }

// Key opens a key slot. It prints as nothing.
type Key []byte

// String hides the key from messages.
func (Key) String() string { return "(key)" }

// GoString hides the key from messages.
func (Key) GoString() string { return "(key)" }

// Validate returns volume.ErrInvalid for what no device is locked with here.
func (k Key) Validate() error {
	if len(k) == 0 || len(k) > longestKeyBytes {
		return fmt.Errorf("%w: the passphrase has %d bytes, from 1 to %d are allowed", volume.ErrInvalid, len(k), longestKeyBytes)
	}
	return nil
}

const (
	// keyTimeout bounds a command that derives a key, on a slow and busy machine.
	keyTimeout = 2 * time.Minute
	// plainTimeout bounds one that does not.
	plainTimeout = time.Minute
)

// derivation is how a new key slot turns a passphrase into a key, with the fewest passes that
// cryptsetup takes and one lane. Without a count it would be measured, for seconds, on a
// machine that may be busy.
var derivation = []string{
	"--pbkdf", "argon2id", "--pbkdf-memory", strconv.Itoa(32 << 10), "--pbkdf-parallel", "1", "--pbkdf-force-iterations", "4",
}

// Require returns volume.ErrToolMissing when the host has no cryptsetup.
func (c *Client) Require(ctx context.Context) error {
	_, err := c.host.LookPath(ctx, Tool)
	return err
}

// Header reads the header of a device. Errors as ReadHeader, volume.ErrNotFound when
// there is no such device.
func (c *Client) Header(ctx context.Context, device string) (h Header, err error) {
	err = c.host.InMountNamespace(ctx, func() error {
		f, err := block.OpenReadOnly(device)
		if err != nil {
			return err
		}
		defer f.Close()
		h, err = ReadHeader(f)
		return err
	})
	if err != nil {
		return Header{}, fmt.Errorf("read the LUKS header of %s: %w", device, err)
	}
	return h, nil
}

// withKey runs cryptsetup with keys on its standard input, one behind the other.
func (c *Client) withKey(ctx context.Context, args []string, keys ...Key) (hostexec.Result, error) {
	for _, key := range keys {
		if err := key.Validate(); err != nil {
			return hostexec.Result{}, err
		}
	}
	select {
	case c.deriving <- struct{}{}:
		defer func() { <-c.deriving }()
	case <-ctx.Done():
		return hostexec.Result{}, ctx.Err()
	}
	input := slices.Concat(keys...)
	defer clear(input)
	return c.run(ctx, hostexec.Command{Name: Tool, Args: args, Stdin: input, Timeout: keyTimeout})
}

func (c *Client) run(ctx context.Context, command hostexec.Command) (hostexec.Result, error) {
	result, err := c.host.Run(ctx, command)
	return result, classify(err)
}

// Exit codes of cryptsetup (cryptsetup(8), RETURN CODES).
const (
	exitWrongKey  = 2
	exitNoMemory  = 3
	exitNoDevice  = 4
	exitExistsNow = 5
)

func classify(err error) error {
	var exit *hostexec.ExitError
	if !errors.As(err, &exit) || exit.TimedOut {
		return err
	}
	switch exit.ExitCode {
	case exitWrongKey:
		return fmt.Errorf("%w: %w", ErrWrongKey, err)
	case exitNoMemory:
		return fmt.Errorf("not enough memory: %w", err)
	case exitExistsNow:
		return fmt.Errorf("%w: %w", volume.ErrInUse, err)
	}
	return err
}

// slotPattern is what cryptsetup says with --verbose of the slot that a key has opened.
var slotPattern = regexp.MustCompile(`(?m)^Key slot ([0-9]+) unlocked\.$`)

// Slot returns the number of the key slot that a key opens. ErrWrongKey: none.
func (c *Client) Slot(ctx context.Context, device string, key Key) (int, error) {
	if err := requirePath(device); err != nil {
		return 0, err
	}
	result, err := c.withKey(ctx, []string{"open", "--type", "luks2", "--test-passphrase", "--verbose", "--batch-mode", "--key-file", "-", device}, key)
	if err != nil {
		return 0, fmt.Errorf("find the key slot of %s: %w", device, err)
	}
	found := slotPattern.FindSubmatch(result.Stdout)
	if found == nil {
		return 0, fmt.Errorf("find the key slot of %s: cryptsetup did not say which one it is", device)
	}
	return strconv.Atoi(string(found[1]))
}

// AddKey adds a key slot for another key, and leaves those there are. The caller looks
// before whether the new key opens a slot already: it would get a second one.
//
// ErrWrongKey: the present key opens no slot; nothing was changed.
func (c *Client) AddKey(ctx context.Context, device string, present, added Key) error {
	if err := requirePath(device); err != nil {
		return err
	}
	args := slices.Concat([]string{"luksAddKey", "--batch-mode"}, derivation, []string{
		"--key-file", "-", "--keyfile-size", strconv.Itoa(len(present)), "--new-keyfile-size", strconv.Itoa(len(added)), device, "-",
	})
	if _, err := c.withKey(ctx, args, present, added); err != nil {
		return fmt.Errorf("add a key slot to %s: %w", device, err)
	}
	return nil
}

// RemoveSlot destroys a key slot. key must open another one, which is proven before anything
// is done: cryptsetup itself would remove the last slot by its own key when nobody can
// be asked. It returns nil when the slot is empty already.
//
// ErrWrongKey: the key opens no other slot; nothing was changed.
func (c *Client) RemoveSlot(ctx context.Context, device string, slot int, key Key) error {
	if err := requirePath(device); err != nil {
		return err
	}
	h, err := c.Header(ctx, device)
	if err != nil {
		return err
	}
	if !slices.Contains(h.Keyslots, slot) {
		return nil
	}
	opened, err := c.Slot(ctx, device, key)
	if err == nil && opened == slot {
		err = fmt.Errorf("%w: it opens the slot itself and no other", ErrWrongKey)
	}
	if err != nil {
		return fmt.Errorf("remove key slot %d of %s: %w", slot, device, err)
	}
	// With --batch-mode the key would not be asked for.
	if _, err := c.withKey(ctx, []string{"luksKillSlot", "--key-file", "-", device, strconv.Itoa(slot)}, key); err != nil {
		return fmt.Errorf("remove key slot %d of %s: %w", slot, device, err)
	}
	return nil
}

// requirePath refuses paths that cryptsetup could take for an option or that mean another
// place than they say.
func requirePath(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return fmt.Errorf("%w: %q is not a clean absolute path", volume.ErrInvalid, path)
	}
	return nil
}
