// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/luks"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

// vault is the LUKS of a host: its headers outlive a reboot, what is open does not. It
// keeps the rules of luks.Client, on the files of the backend.
type vault struct {
	t       *testing.T
	k       *killer
	headers map[string]*vaultHeader // by the file that is the device
	open    map[string]string       // device by volume's ID
	stopped map[string]bool         // suspended, by volume's ID
	gone    map[string]bool         // on a disk that was pulled out, by volume's ID
	made    int
	ran     []string
}

type vaultHeader struct {
	uuid  string
	slots map[int]string
	plain string // file with what is behind the header
}

var _ Cryptsetup = (*vault)(nil)

func newVault(t *testing.T, k *killer) *vault {
	return &vault{t: t, k: k, headers: map[string]*vaultHeader{}, open: map[string]string{}, stopped: map[string]bool{}, gone: map[string]bool{}}
}

func (f *vault) reboot() { clear(f.open); clear(f.stopped); clear(f.gone) }

func (f *vault) store(device string) string {
	f.t.Helper()
	path, err := filepath.EvalSymlinks(device)
	if err != nil {
		f.t.Fatal(err)
	}
	return path
}

// step runs what changes something, with a step before and after.
func (f *vault) step(what string, change func()) error {
	if err := f.k.step(); err != nil {
		return err
	}
	f.ran = append(f.ran, what)
	change()
	return f.k.step()
}

func (f *vault) Header(_ context.Context, device string) (luks.Header, error) {
	h := f.headers[f.store(device)]
	if h == nil {
		return luks.Header{}, luks.ErrNoHeader
	}
	return luks.Header{UUID: h.uuid, Cipher: "aes-xts-plain64", Keyslots: slices.Sorted(maps.Keys(h.slots))}, nil
}

func (f *vault) Format(ctx context.Context, req luks.FormatRequest) error {
	store := f.store(req.Device)
	if _, open := f.open[lvUID]; open {
		return volume.ErrInUse
	}
	h := f.headers[store]
	if !req.Begun && (h != nil || !blank(head(f.t, req.Device))) || h != nil && h.uuid != req.UUID {
		return volume.ErrNotBlank
	}
	if !req.Begun {
		if err := req.Begin(ctx); err != nil {
			return err
		}
	}
	f.made++
	plain := filepath.Join(f.t.TempDir(), fmt.Sprintf("plain-%d", f.made))
	if err := os.WriteFile(plain, bytes.Repeat([]byte("noise"), 1000), 0o600); err != nil {
		f.t.Fatal(err)
	}
	// The header comes before its first slot.
	fresh := &vaultHeader{uuid: req.UUID, slots: map[int]string{}, plain: plain}
	if err := f.step("header", func() { f.headers[store] = fresh; overwrite(f.t, req.Device, []byte("LUKS")) }); err != nil {
		return err
	}
	return f.step("format", func() { fresh.slots[0] = string(req.Key) })
}

func (f *vault) Find(_ context.Context, m luks.Mapping) (luks.Opened, bool, error) {
	device, ok := f.open[m.ID]
	if !ok {
		return luks.Opened{}, false, nil
	}
	if f.gone[m.ID] {
		return luks.Opened{}, false, volume.ErrGone
	}
	if device != f.store(m.Device) {
		return luks.Opened{}, false, volume.ErrIdentity
	}
	info, err := os.Stat(device)
	if err != nil {
		f.t.Fatal(err)
	}
	return luks.Opened{Path: f.headers[device].plain, SizeBytes: volume.EncryptionLUKS2.Usable(info.Size()), Suspended: f.stopped[m.ID]}, true, nil
}

func (f *vault) slotOf(device string, key luks.Key) (int, error) {
	h := f.headers[f.store(device)]
	if h == nil {
		return 0, luks.ErrNoHeader
	}
	for number, have := range h.slots {
		if have == string(key) {
			return number, nil
		}
	}
	return 0, luks.ErrWrongKey
}

func (f *vault) Open(ctx context.Context, m luks.Mapping, key luks.Key) (luks.Opened, error) {
	if opened, ok, err := f.Find(ctx, m); ok || err != nil {
		return opened, err
	}
	if _, err := f.slotOf(m.Device, key); err != nil {
		return luks.Opened{}, err
	}
	if f.headers[f.store(m.Device)].uuid != m.UUID {
		return luks.Opened{}, volume.ErrIdentity
	}
	if err := f.step("open", func() { f.open[m.ID] = f.store(m.Device) }); err != nil {
		return luks.Opened{}, err
	}
	opened, _, err := f.Find(ctx, m)
	return opened, err
}

func (f *vault) Resize(ctx context.Context, m luks.Mapping, key luks.Key) (luks.Opened, error) {
	if _, err := f.slotOf(m.Device, key); err != nil {
		return luks.Opened{}, err
	}
	opened, _, err := f.Find(ctx, m)
	return opened, err
}

func (f *vault) Close(_ context.Context, id string) error {
	if _, open := f.open[id]; !open {
		return nil
	}
	return f.step("close", func() { delete(f.open, id); delete(f.stopped, id); delete(f.gone, id) })
}

func (f *vault) Node(id string) (string, error) {
	if device, open := f.open[id]; open {
		return f.headers[device].plain, nil
	}
	return "", nil
}

func (f *vault) Suspend(m luks.Mapping) error {
	return f.step("suspend", func() { f.stopped[m.ID] = true })
}

func (f *vault) Resume(m luks.Mapping) error {
	return f.step("resume", func() { delete(f.stopped, m.ID) })
}

func (f *vault) Slot(_ context.Context, device string, key luks.Key) (int, error) {
	return f.slotOf(device, key)
}

func (f *vault) AddKey(_ context.Context, device string, present, added luks.Key) error {
	if _, err := f.slotOf(device, present); err != nil {
		return err
	}
	h := f.headers[f.store(device)]
	free := 0
	for ; h.slots[free] != ""; free++ {
	}
	return f.step("add", func() { h.slots[free] = string(added) })
}

func (f *vault) RemoveSlot(_ context.Context, device string, slot int, key luks.Key) error {
	h := f.headers[f.store(device)]
	if h.slots[slot] == "" {
		return nil
	}
	if opens, err := f.slotOf(device, key); err != nil || opens == slot {
		return luks.ErrWrongKey
	}
	return f.step("remove", func() { delete(h.slots, slot) })
}

func (f *vault) ClearEnds(_ context.Context, path string) error {
	return f.step("clear", func() {
		if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
			f.t.Fatal(err)
		}
	})
}

func (f *vault) DestroyKeys(_ context.Context, device string) error {
	if slices.Contains(slices.Collect(maps.Values(f.open)), f.store(device)) {
		return volume.ErrInUse
	}
	return f.step("destroy", func() {
		delete(f.headers, f.store(device))
		overwrite(f.t, device, []byte("random"))
	})
}

// Inspect implements Filesystems, for what formatter writes.
func (h *host) Inspect(_ context.Context, device string) (mount.Superblock, error) {
	words := strings.Fields(string(bytes.Trim(head(h.t, device), "\x00")))
	if len(words) != 3 || words[0] != "FS" {
		return mount.Superblock{}, mount.ErrNoFilesystem
	}
	return mount.Superblock{FSType: words[1], UUID: words[2], Complete: true}, nil
}

// located is the volume as the CSI node service sees it.
func (h *host) located() csi.Volume {
	h.t.Helper()
	v, err := h.known.Locate(h.t.Context(), lvName)
	if err != nil {
		h.t.Fatal(err)
	}
	return v
}

// stage opens the volume as NodeStageVolume does.
func (h *host) stage(secrets map[string]string) error {
	v, err := h.known.Locate(h.t.Context(), lvName)
	if err == nil {
		_, err = h.sealer.Open(h.t.Context(), v, secrets)
	}
	return err
}

func (h *host) unstage() {
	h.t.Helper()
	if err := h.sealer.Close(h.t.Context(), lvName); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) entry() ledger.Entry {
	h.t.Helper()
	e, err := h.agent.Ledger.Get(lvUID)
	if err != nil {
		h.t.Fatal(err)
	}
	return e
}
