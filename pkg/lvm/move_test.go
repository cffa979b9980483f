// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"errors"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

// pvmove is told which devices it may see, and to leave the waiting to us; without devices it
// is not run at all.
func TestMoveCommand(t *testing.T) {
	t.Parallel()
	g := &Group{Name: "bt", PVs: []PhysicalVolume{{UUID: "a", Path: "/dev/vdb"}, {UUID: "b", Path: "/dev/vdc"}}}
	op := &operation{verb: verbMove, pv: "a", runs: []run{{5, 10}, {20, 1}}, devices: []string{"/dev/vdc"}}
	s := session{devices: []string{"/dev/vdb", "/dev/vdc"}, settings: []string{"monitoring=0"}}
	command, err := moveCommand(s, g, op)
	const want = `pvmove --yes --atomic --interval +31536000 --config devices{filter=["a|^/dev/vdb$|","a|^/dev/vdc$|","r|.*|"]use_devicesfile=0}` +
		`activation{udev_sync=0 udev_rules=0 monitoring=0}global{use_lvmpolld=0} /dev/vdb:5-14:20-20 /dev/vdc`
	if got := strings.Join(command.Args, " "); err != nil || got != want {
		t.Errorf("got %q, %v", got, err)
	}
	command, err = moveCommand(s, g, &operation{verb: verbMove, pv: "a"})
	if got := strings.Join(command.Args, " "); err != nil || !strings.HasSuffix(got, " /dev/vdb") {
		t.Errorf("to go on: %q, %v", got, err)
	}
	if command, err := moveCommand(session{}, g, op); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("without devices: %q, %v", command.Args, err)
	}
	if input, err := script(session{}, [][]string{{pvmove, "--yes", "--abort"}}); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("without devices: %q, %v", input, err)
	}
}
