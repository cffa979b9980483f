// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

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

// bootLimit bounds how long a guest may take until its agent answers.
const bootLimit = 5 * time.Minute

// Boot is how a guest is booted from the base image.
type Boot struct {
	QEMU  guest.QEMU
	Accel guest.Accel
	// BaseDir holds the base image.
	BaseDir string
}

// BuildForeign makes the images of the foreign disks in dir. It boots the base
// image once, because they are made by a kernel that has device-mapper and md,
// which this machine's may lack. report tells what it is at.
func BuildForeign(ctx context.Context, dir string, boot Boot, log *os.File, report func(string)) (err error) {
	scratch := filepath.Join(dir, "guest")
	if err := os.Mkdir(scratch, 0o755); err != nil {
		return err
	}
	machine := guest.Machine{
		QEMU: boot.QEMU, Name: "foreign", Accel: boot.Accel, CPUs: 2, MemoryMiB: 2048, NoReboot: true,
		Kernel: filepath.Join(boot.BaseDir, KernelFile), Initrd: filepath.Join(boot.BaseDir, InitrdFile),
		Append: KernelParameters + " systemd.machine_id=" + strings.Repeat("9", 32),
		Disks: []guest.Disk{{
			Serial: "ROOT", Class: guest.ClassRoot, Bus: guest.BusVirtio, SizeBytes: RootSizeBytes,
			Image: "root.qcow2", Backing: filepath.Join(boot.BaseDir, RootFile),
		}},
	}
	for _, foreign := range ForeignDisks {
		machine.Disks = append(machine.Disks, guest.Disk{
			Serial: foreign.Serial(""), Class: guest.ClassForeign, Bus: guest.BusVirtio, SizeBytes: foreign.SizeBytes, Image: "../" + foreign.Image(),
		})
	}
	for _, disk := range machine.Disks {
		if err := disk.Create(ctx, scratch); err != nil {
			return err
		}
	}
	argv, err := machine.Argv()
	if err != nil {
		return err
	}
	fmt.Fprintln(log, "+", strings.Join(argv, " "))
	command := exec.CommandContext(ctx, argv[0], argv[1:]...)
	command.Dir, command.Stdout, command.Stderr = scratch, log, log
	// The guest must not outlive this process; it has no pid file.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the signal comes when the thread ends
	defer runtime.UnlockOSThread()
	if err := command.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	defer func() {
		if err != nil {
			command.Process.Kill()
			console, _ := os.ReadFile(filepath.Join(scratch, guest.ConsoleLog))
			log.Write(console)
		}
	}()
	agent := guest.Agent{Dir: scratch}
	report("booting a guest for it")
	if err := awaitAgent(ctx, agent, ended); err != nil {
		return err
	}
	for _, disk := range ForeignDisks {
		report(disk.Name)
		// The guest agent answers before udev has seen all disks.
		text := fmt.Sprintf("DISK=/dev/disk/by-id/virtio-%s\nudevadm wait --timeout=120 \"$DISK\"\n%s%s", disk.Serial(""), makeFilesystem, disk.script)
		if err := script(ctx, agent, log, "make foreign disk "+disk.Name, text); err != nil {
			return err
		}
	}
	// Nothing else of this guest is kept, so it need not shut down.
	if err := script(ctx, agent, log, "flush", "sync; blockdev --flushbufs /dev/disk/by-id/virtio-FOREIGN-*"); err != nil {
		return err
	}
	if err := command.Process.Kill(); err != nil {
		return err
	}
	<-ended
	return os.RemoveAll(scratch)
}

// KernelParameters are those of every node. The guests are trusted, so they do
// without mitigations, which cost most under emulation.
const KernelParameters = "console=ttyS0 quiet panic=1 mitigations=off apparmor=0 audit=0 random.trust_cpu=on nokaslr no_timer_check tsc=reliable systemd.show_status=no systemd.getty_auto=no"

func awaitAgent(ctx context.Context, agent guest.Agent, ended <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	for {
		attempt, stop := context.WithTimeout(ctx, 2*time.Second)
		err := agent.Ping(attempt)
		stop()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the guest did not boot: %w", err)
		case err := <-ended:
			return fmt.Errorf("the guest ended while booting: %w", errors.Join(errors.New("see its console"), err))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

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
