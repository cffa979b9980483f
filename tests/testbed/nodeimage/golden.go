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
	"strings"
	"syscall"
	"time"

	"github.com/berth-dev/berth/tests/testbed/artifact"
	"github.com/berth-dev/berth/tests/testbed/guest"
)

// importScript puts the container images into containerd, where every node
// will find them.
const importScript = `
for try in $(seq 600); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
for archive in /opt/images/*.tar; do ctr -n k8s.io images import "$archive"; done
rm -r /opt/images
`

// finishScript leaves nothing behind that says that the machine ever ran.
const finishScript = `
rm -rf /var/log/journal/* /run/log/journal/* /var/lib/systemd/random-seed
: > /etc/machine-id
fstrim / || true
sync
`

// GoldenKey identifies the golden image.
func GoldenKey(base *artifact.Key) *artifact.Key {
	key := artifact.NewKey("node").Add("base", base.String()).Add("import", importScript).Add("finish", finishScript).Add("filesystem", makeFilesystem)
	for _, disk := range ForeignDisks {
		key.Add(disk.Name, fmt.Sprint(disk.SizeBytes)+disk.script)
	}
	return key
}

// bootLimit bounds how long a guest may take until its agent answers.
const bootLimit = 5 * time.Minute

// BuildGolden boots the base image once: the container images are imported
// into its containerd, and the foreign disks are made by a kernel that has
// device-mapper and md, which this machine's may lack. The product in dir is
// the nodes' root disk, their kernel and initial RAM disk, and the foreign
// disks' images. report tells what it is at.
func BuildGolden(ctx context.Context, dir, baseDir string, accel guest.Accel, log *os.File, report func(string)) (err error) {
	for _, name := range []string{KernelFile, InitrdFile, RootFile} {
		if err := run(ctx, log, "cp", "--sparse=always", filepath.Join(baseDir, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	machine := guest.Machine{
		Name: "golden", Accel: accel, CPUs: 2, MemoryMiB: 2048, NoReboot: true,
		Kernel: KernelFile, Initrd: InitrdFile, Append: KernelParameters + " systemd.machine_id=" + strings.Repeat("9", 32),
		Disks: []guest.Disk{{Serial: "ROOT", Class: guest.ClassRoot, Bus: guest.BusVirtio, SizeBytes: RootSizeBytes, Image: RootFile}},
	}
	for _, foreign := range ForeignDisks {
		disk := guest.Disk{Serial: foreign.Serial(""), Class: guest.ClassForeign, Bus: guest.BusVirtio, SizeBytes: foreign.SizeBytes, Image: foreign.Image()}
		if err := disk.Create(ctx, dir); err != nil {
			return err
		}
		machine.Disks = append(machine.Disks, disk)
	}
	argv, err := machine.Argv()
	if err != nil {
		return err
	}
	fmt.Fprintln(log, "+", strings.Join(argv, " "))
	command := exec.CommandContext(ctx, argv[0], argv[1:]...)
	command.Dir, command.Stdout, command.Stderr = dir, log, log
	// The guest must not outlive this process; it has no pid file.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	defer func() {
		if err != nil {
			command.Process.Kill()
			console, _ := os.ReadFile(filepath.Join(dir, guest.ConsoleLog))
			log.Write(console)
		}
	}()
	agent := guest.Agent{Dir: dir}
	report("booting")
	if err := awaitAgent(ctx, agent, ended); err != nil {
		return err
	}
	report("importing container images")
	if err := script(ctx, agent, log, "import container images", importScript); err != nil {
		return err
	}
	for _, disk := range ForeignDisks {
		report("making foreign disk " + disk.Name)
		text := fmt.Sprintf("DISK=/dev/disk/by-id/virtio-%s\n%s%s", disk.Serial(""), makeFilesystem, disk.script)
		if err := script(ctx, agent, log, "make foreign disk "+disk.Name, text); err != nil {
			return err
		}
	}
	report("powering off")
	if err := script(ctx, agent, log, "clean up", finishScript); err != nil {
		return err
	}
	// The answer is lost if the guest is quick.
	agent.Exec(ctx, []string{"systemctl", "poweroff"}, nil)
	select {
	case err := <-ended:
		if err != nil {
			return fmt.Errorf("golden guest: %w", err)
		}
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(2 * time.Minute):
		return errors.New("the golden guest did not power off")
	}
	for _, name := range []string{guest.QMPSocket, guest.AgentSocket, guest.ConsoleLog, guest.AgentSocket + ".lock", guest.QMPSocket + ".lock"} {
		os.Remove(filepath.Join(dir, name))
	}
	return nil
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
