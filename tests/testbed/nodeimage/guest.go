// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-dev/berth/tests/testbed/artifact"
	"github.com/berth-dev/berth/tests/testbed/guest"
)

// ForeignKey identifies the foreign disks. They depend on the tools that make
// them and not on what else is in the image.
func ForeignKey(rootfs *artifact.Key) *artifact.Key {
	key := artifact.NewKey("foreign").Add("rootfs", rootfs.String()).Add("filesystem", makeFilesystem)
	for _, disk := range ForeignDisks {
		key.Add(disk.Name, fmt.Sprint(disk.SizeBytes)+disk.script)
	}
	return key
}

// BuildForeign makes the images of the foreign disks in dir. It boots the base
// image once, because they are made by a kernel that has device-mapper and md,
// which this machine's may lack. report tells what it is at.
func BuildForeign(ctx context.Context, dir string, boot Boot, log *os.File, report func(string)) (err error) {
	scratch := filepath.Join(dir, "guest")
	if err := os.Mkdir(scratch, 0o755); err != nil {
		return err
	}
	var disks []guest.Disk
	for _, foreign := range ForeignDisks {
		disks = append(disks, guest.Disk{
			Serial: foreign.Serial(""), Class: guest.ClassForeign, Bus: guest.BusVirtio, SizeBytes: foreign.SizeBytes, Image: "../" + foreign.Image(),
		})
	}
	report("booting a guest for it")
	machine, err := boot.Start(ctx, MachineOptions{Name: "foreign", Dir: scratch, CPUs: 2, MemoryMiB: 2048, Disks: disks, Log: log})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			console, _ := os.ReadFile(filepath.Join(scratch, guest.ConsoleLog))
			_, _ = log.Write(console)
		}
		err = errors.Join(err, machine.Kill())
	}()
	for _, disk := range ForeignDisks {
		report(disk.Name)
		// The guest agent answers before udev has seen all disks.
		text := fmt.Sprintf("DISK=/dev/disk/by-id/virtio-%s\nudevadm wait --timeout=120 \"$DISK\"\n%s%s", disk.Serial(""), makeFilesystem, disk.script)
		if err := script(ctx, machine.Agent, log, "make foreign disk "+disk.Name, text); err != nil {
			return err
		}
	}
	// Nothing else of this guest is kept, so it need not shut down.
	if err := script(ctx, machine.Agent, log, "flush", "sync; blockdev --flushbufs /dev/disk/by-id/virtio-FOREIGN-*"); err != nil {
		return err
	}
	if err := machine.Kill(); err != nil {
		return err
	}
	return os.RemoveAll(scratch)
}

// KernelParameters are those of every node. The guests are trusted, so they do
// without mitigations, which cost most under emulation.
const KernelParameters = "console=ttyS0 quiet panic=1 mitigations=off apparmor=0 audit=0 random.trust_cpu=on nokaslr no_timer_check tsc=reliable systemd.show_status=no systemd.getty_auto=no"

func script(ctx context.Context, agent guest.Agent, log *os.File, what, text string) error {
	result, err := agent.Exec(ctx, []string{"/bin/sh", "-euxc", text}, nil)
	fmt.Fprintf(log, "--- %s: %d\n%s%s", what, result.ExitCode, result.Stdout, result.Stderr)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if result.ExitCode != 0 {
		return fmt.Errorf("%s: exit status %d", what, result.ExitCode)
	}
	return nil
}
