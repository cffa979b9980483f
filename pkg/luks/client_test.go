// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package luks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
	"github.com/berth-dev/berth/pkg/volume"
)

const mib = int64(1) << 20

var (
	first  = Key("the first passphrase")
	second = Key("the second, which is longer")
)

// realClient is a client of this machine with a blank device. Opening needs device-mapper,
// which the end-to-end tests have.
func realClient(t *testing.T, sizeBytes int64) (*Client, *mounttest.Loop) {
	t.Helper()
	loop := mounttest.LoopDevice(t, sizeBytes)
	c := NewClient(mounttest.Here(t))
	if err := c.Require(t.Context()); err != nil {
		t.Skip("cryptsetup is not installed on this machine")
	}
	return c, loop
}

func formatted(t *testing.T, c *Client, device string) {
	t.Helper()
	if err := c.Format(t.Context(), FormatRequest{Device: device, UUID: testUUID, Label: "pvc-1", Key: first}); err != nil {
		t.Fatal(err)
	}
}

func TestFormat(t *testing.T) {
	c, loop := realClient(t, 32*mib)
	begun := 0
	request := FormatRequest{
		Device: loop.Path, UUID: testUUID, Label: "pvc/1 " + strings.Repeat("x", 60), Key: first,
		Begin: func(context.Context) error { begun++; return nil },
	}
	if err := c.Format(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	h, err := c.Header(t.Context(), loop.Path)
	want := Header{
		UUID: testUUID, Label: "pvc_1_" + strings.Repeat("x", 41), Subsystem: Subsystem, Sequence: h.Sequence, Keyslots: []int{0},
		Cipher: "aes-xts-plain64", DataOffsetBytes: HeaderBytes,
	}
	if err != nil || !reflect.DeepEqual(h, want) || begun != 1 {
		t.Fatalf("got %+v, %v, begun %d times, want %+v", h, err, begun, want)
	}
	if slot, err := c.Slot(t.Context(), loop.Path, first); err != nil || slot != 0 {
		t.Errorf("slot %d, %v", slot, err)
	}
	if _, err := c.Slot(t.Context(), loop.Path, second); !errors.Is(err, ErrWrongKey) {
		t.Errorf("a wrong key: %v, want ErrWrongKey", err)
	}
	before := content(t, loop)
	if err := c.Format(t.Context(), request); !errors.Is(err, volume.ErrNotBlank) {
		t.Errorf("formatted again: %v, want ErrNotBlank", err)
	}
	if !bytes.Equal(before, content(t, loop)) || begun != 1 {
		t.Error("a refused format has left something")
	}
	// The record says that a format was begun and that nobody got the device.
	request.Begun, request.Key = true, second
	if err := c.Format(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Slot(t.Context(), loop.Path, second); err != nil || begun != 1 {
		t.Errorf("after another format: %v, begun %d times", err, begun)
	}
}

func TestFormatRefuses(t *testing.T) {
	c, loop := realClient(t, 32*mib)
	_, small := realClient(t, 16*mib)
	_, foreign := realClient(t, 32*mib)
	if err := c.Format(t.Context(), FormatRequest{Device: foreign.Path, UUID: "0b6a1c1e-3f57-4f0e-9d3c-5a1f7f2f9a02", Key: first}); err != nil {
		t.Fatal(err)
	}
	refused := errors.New("the ledger cannot be written")
	for name, tt := range map[string]struct {
		change func(*FormatRequest)
		want   error
	}{
		"no key":          {func(r *FormatRequest) { r.Key = nil }, volume.ErrInvalid},
		"a huge key":      {func(r *FormatRequest) { r.Key = make(Key, 513) }, volume.ErrInvalid},
		"a bad UUID":      {func(r *FormatRequest) { r.UUID = "x" }, volume.ErrInvalid},
		"a relative path": {func(r *FormatRequest) { r.Device = "--help" }, volume.ErrInvalid},
		"no device":       {func(r *FormatRequest) { r.Device = "/dev/berth-nothing" }, volume.ErrNotFound},
		"a small device":  {func(r *FormatRequest) { r.Device = small.Path }, volume.ErrInvalid},
		"no record":       {func(r *FormatRequest) { r.Begin = func(context.Context) error { return refused } }, refused},
		"another header where remains are": {func(r *FormatRequest) {
			r.Device, r.Begun = foreign.Path, true
		}, volume.ErrNotBlank},
	} {
		request := FormatRequest{Device: loop.Path, UUID: testUUID, Key: first}
		tt.change(&request)
		if err := c.Format(t.Context(), request); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
	}
	if _, err := c.Header(t.Context(), loop.Path); !errors.Is(err, ErrNoHeader) {
		t.Errorf("a refused format has left a header: %v", err)
	}
}

// Killed at each step of a change of keys, the device opens with one of the two.
func TestChangeOfKeys(t *testing.T) {
	c, loop := realClient(t, 32*mib)
	formatted(t, c, loop.Path)
	opens := func(step string, want map[string]bool) {
		t.Helper()
		for name, key := range map[string]Key{"first": first, "second": second} {
			_, err := c.Slot(t.Context(), loop.Path, key)
			if (err == nil) != want[name] || err != nil && !errors.Is(err, ErrWrongKey) {
				t.Errorf("%s: the %s key: %v, want it to open: %t", step, name, err, want[name])
			}
		}
	}
	if err := c.AddKey(t.Context(), loop.Path, second, first); !errors.Is(err, ErrWrongKey) {
		t.Errorf("added by a wrong key: %v, want ErrWrongKey", err)
	}
	opens("before", map[string]bool{"first": true})
	if err := c.AddKey(t.Context(), loop.Path, first, second); err != nil {
		t.Fatal(err)
	}
	opens("added", map[string]bool{"first": true, "second": true})
	if err := c.RemoveSlot(t.Context(), loop.Path, 0, Key("a third one")); !errors.Is(err, ErrWrongKey) {
		t.Errorf("removed by a wrong key: %v, want ErrWrongKey", err)
	}
	if err := c.RemoveSlot(t.Context(), loop.Path, 0, first); !errors.Is(err, ErrWrongKey) {
		t.Errorf("removed by the key of the slot itself: %v, want ErrWrongKey", err)
	}
	opens("not removed", map[string]bool{"first": true, "second": true})
	for range 2 {
		if err := c.RemoveSlot(t.Context(), loop.Path, 0, second); err != nil {
			t.Fatal(err)
		}
	}
	opens("removed", map[string]bool{"second": true})
	if err := c.RemoveSlot(t.Context(), loop.Path, 1, second); !errors.Is(err, ErrWrongKey) {
		t.Errorf("the last slot removed: %v, want ErrWrongKey", err)
	}
	opens("the last one", map[string]bool{"second": true})
}

func TestDestroyKeys(t *testing.T) {
	c, loop := realClient(t, 32*mib)
	formatted(t, c, loop.Path)
	before := content(t, loop)
	if err := os.WriteFile(loop.File+".behind", before[HeaderBytes:], 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.DestroyKeys(t.Context(), loop.Path); err != nil {
			t.Fatal(err)
		}
		after := content(t, loop)
		const slotAt, slotBytes = 32 << 10, 252 << 10 // where cryptsetup has put the first
		if bytes.Equal(after[slotAt:slotAt+slotBytes], before[slotAt:slotAt+slotBytes]) || !bytes.Equal(after[HeaderBytes:], before[HeaderBytes:]) {
			t.Error("the key slot is there, or more than the header was overwritten")
		}
		if bytes.Contains(after[:HeaderBytes], []byte("LUKS\xba\xbe")) || bytes.Contains(after[:HeaderBytes], []byte("SKUL\xba\xbe")) || bytes.Contains(after[:HeaderBytes], []byte(testUUID)) {
			t.Error("a copy of the header is left")
		}
	}
	if _, err := c.Slot(t.Context(), loop.Path, first); err == nil || errors.Is(err, ErrWrongKey) {
		t.Errorf("the device opens, or says that only the key is wrong: %v", err)
	}
}

func content(t *testing.T, loop *mounttest.Loop) []byte {
	t.Helper()
	b, err := os.ReadFile(loop.File)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// toldHost notes what it is asked to run, and answers as it is told.
type toldHost struct {
	Host
	ran    []hostexec.Command
	input  []string
	result hostexec.Result
	err    error
}

func (h *toldHost) Run(_ context.Context, c hostexec.Command) (hostexec.Result, error) {
	h.ran, h.input = append(h.ran, c), append(h.input, string(c.Stdin))
	return h.result, h.err
}

func TestKeysAreOnStandardInputOnly(t *testing.T) {
	t.Parallel()
	h := &toldHost{result: hostexec.Result{Stdout: []byte("No usable token is available.\nKey slot 7 unlocked.\nCommand successful.\n")}}
	c := NewClient(h)
	if slot, err := c.Slot(t.Context(), "/dev/x", first); err != nil || slot != 7 {
		t.Errorf("slot %d, %v", slot, err)
	}
	if err := c.AddKey(t.Context(), "/dev/x", first, second); err != nil {
		t.Error(err)
	}
	if want := []string{string(first), string(first) + string(second)}; !slices.Equal(h.input, want) {
		t.Errorf("given %q, want %q", h.input, want)
	}
	for _, command := range h.ran {
		all := fmt.Sprintf("%s %v %v", command, command.Env, command.Args)
		if strings.Contains(all, string(first)) || strings.Contains(all, string(second)) {
			t.Errorf("a key is in %q", all)
		}
		if len(bytes.Trim(command.Stdin, "\x00")) != 0 {
			t.Error("the copy of the key was not cleared")
		}
	}
	if text := fmt.Sprintf("%v %s %#v", first, first, struct{ K Key }{first}); strings.Contains(text, "passphrase") {
		t.Errorf("a key prints as %q", text)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		err  error
		want error
	}{
		"wrong key": {&hostexec.ExitError{ExitCode: 2}, ErrWrongKey},
		"in use":    {&hostexec.ExitError{ExitCode: 5}, volume.ErrInUse},
		"no tool":   {fmt.Errorf("run: %w", volume.ErrToolMissing), volume.ErrToolMissing},
	} {
		c := NewClient(&toldHost{err: tt.err})
		if _, err := c.Slot(t.Context(), "/dev/x", first); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
	}
	// What a killed cryptsetup exits with says nothing of the key.
	c := NewClient(&toldHost{err: &hostexec.ExitError{ExitCode: 2, TimedOut: true}})
	if _, err := c.Slot(t.Context(), "/dev/x", first); errors.Is(err, ErrWrongKey) {
		t.Errorf("killed: got %v", err)
	}
	c = NewClient(&toldHost{})
	if _, err := c.Slot(t.Context(), "/dev/x", first); err == nil {
		t.Error("no slot was named, and that is no error")
	}
}

// Only one key is derived at a time, and who waits can leave.
func TestOneDerivationAtATime(t *testing.T) {
	t.Parallel()
	c := NewClient(&toldHost{})
	c.deriving <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Slot(ctx, "/dev/x", first); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want Canceled", err)
	}
}

func TestHeaderBytesAreTheOverhead(t *testing.T) {
	t.Parallel()
	if got := volume.EncryptionLUKS2.OverheadBytes(); got != HeaderBytes {
		t.Errorf("volumes are made %d bytes larger, and the header takes %d", got, HeaderBytes)
	}
}
