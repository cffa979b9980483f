// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

func TestParseOptions(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		options []string
		flags   uintptr
		data    string
		refused string
	}{
		{name: "none"},
		{name: "defaults and fstab's words", options: []string{"defaults,nofail", "_netdev", "x-systemd.automount", ""}},
		{name: "flags", options: []string{"noatime,nodev", " nosuid "}, flags: unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOSUID},
		{name: "the last word counts", options: []string{"ro", "noexec", "rw", "exec", "ro"}, flags: unix.MS_RDONLY},
		{name: "the filesystem's own", options: []string{"discard", "noatime", "data=ordered,commit=30"}, flags: unix.MS_NOATIME, data: "discard,data=ordered,commit=30"},
		{name: "a security label", options: []string{`context="system_u:object_r:container_file_t:s0:c1"`}, data: `context="system_u:object_r:container_file_t:s0:c1"`},
		{name: "bind", options: []string{"noatime,bind"}, refused: `"bind"`},
		{name: "remount", options: []string{"remount,ro"}, refused: `"remount"`},
		{name: "loop with a value", options: []string{"loop=/dev/loop0"}, refused: `"loop=/dev/loop0"`},
		{name: "propagation", options: []string{"rshared"}, refused: `"rshared"`},
		{name: "users", options: []string{"users"}, refused: `"users"`},
		{name: "a line break", options: []string{"discard\nro"}, refused: "discard"},
		{name: "too long", options: []string{strings.Repeat("x", os.Getpagesize())}, refused: "too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseOptions(tt.options)
			if tt.refused != "" {
				if !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), tt.refused) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || got.flags != tt.flags || got.data != tt.data {
				t.Errorf("got %#x %q, %v", got.flags, got.data, err)
			}
			if ReadOnly(tt.options) != (tt.flags&unix.MS_RDONLY != 0) {
				t.Error("ReadOnly disagrees")
			}
		})
	}
}

// No option, alone or with others, may make the kernel do something else than
// mounting a filesystem.
func FuzzParseOptions(f *testing.F) {
	for _, seed := range []string{"ro,noatime", "bind", "remount,rw", "move", "discard,x=y", "defaults"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, options string) {
		p, err := parseOptions([]string{options})
		if err != nil {
			if !errors.Is(err, volume.ErrInvalid) {
				t.Errorf("got %v", err)
			}
			return
		}
		const other = unix.MS_BIND | unix.MS_MOVE | unix.MS_REMOUNT | unix.MS_REC |
			unix.MS_SHARED | unix.MS_SLAVE | unix.MS_PRIVATE | unix.MS_UNBINDABLE
		if p.flags&other != 0 || len(p.data) >= os.Getpagesize() || strings.ContainsAny(p.data, "\x00\n") {
			t.Errorf("%q became %#x %q", options, p.flags, p.data)
		}
	})
}
