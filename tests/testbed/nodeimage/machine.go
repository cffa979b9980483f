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

	"github.com/berth-dev/berth/tests/testbed/guest"
)

// bootLimit bounds how long a guest may take until its agent answers.
const bootLimit = 5 * time.Minute

// Boot is how a guest is booted from the base image.
type Boot struct {
	QEMU  guest.QEMU
	Accel guest.Accel
	// BaseDir holds the base image.
	BaseDir string
}

// MachineOptions are one guest's.
type MachineOptions struct {
	Name string
	// Dir is the guest's folder, which exists. What is missing of its disks is made there.
	Dir       string
	CPUs      int
	MemoryMiB int
	// Disks are those beside the root disk.
	Disks []guest.Disk
	// Log takes QEMU's own output, and the console of a guest that did not boot.
	Log *os.File
}

// Machine is a guest without a network, and without a pid file: it ends with this process at
// the latest.
type Machine struct {
	// Agent runs commands in it.
	Agent guest.Agent
	// Ended is closed when it has ended: it was killed, or it started itself again, which
	// ends it.
	Ended <-chan struct{}

	process *os.Process
}

// Start boots a guest from the base image and returns when its agent answers, which is before
// udev has seen all disks. The root disk keeps what an earlier guest of the folder has written.
func (b Boot) Start(ctx context.Context, options MachineOptions) (*Machine, error) {
	machine := guest.Machine{
		QEMU: b.QEMU, Name: options.Name, Accel: b.Accel, CPUs: options.CPUs, MemoryMiB: options.MemoryMiB, NoReboot: true,
		Kernel: filepath.Join(b.BaseDir, KernelFile), Initrd: filepath.Join(b.BaseDir, InitrdFile),
		Append: KernelParameters + " systemd.machine_id=" + strings.Repeat("9", 32),
		Disks: append([]guest.Disk{{
			Serial: "ROOT", Class: guest.ClassRoot, Bus: guest.BusVirtio, SizeBytes: RootSizeBytes,
			Image: "root.qcow2", Backing: filepath.Join(b.BaseDir, RootFile),
		}}, options.Disks...),
	}
	for _, disk := range machine.Disks {
		if err := disk.Create(ctx, options.Dir); err != nil {
			return nil, err
		}
	}
	argv, err := machine.Argv()
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(options.Log, "+", strings.Join(argv, " "))
	command := exec.Command(argv[0], argv[1:]...)
	command.Dir, command.Stdout, command.Stderr = options.Dir, options.Log, options.Log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		// The signal comes when the thread ends that started the process, not this program.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		started <- err
		if err == nil {
			_ = command.Wait() // the guest's end has no status of interest
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	m := &Machine{Agent: guest.Agent{Dir: options.Dir}, Ended: ended, process: command.Process}
	if err := m.awaitAgent(ctx); err != nil {
		console, _ := os.ReadFile(filepath.Join(options.Dir, guest.ConsoleLog))
		_, _ = options.Log.Write(console)
		return nil, errors.Join(err, m.Kill())
	}
	return m, nil
}

// Kill takes the guest's power away, and returns when it has ended. A guest that has ended
// stays so.
func (m *Machine) Kill() error {
	if err := m.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-m.Ended
	return nil
}

func (m *Machine) awaitAgent(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	for {
		attempt, stop := context.WithTimeout(ctx, 2*time.Second)
		err := m.Agent.Ping(attempt)
		stop()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the guest did not boot: %w", err)
		case <-m.Ended:
			return errors.New("the guest ended while booting: see its console")
		case <-time.After(200 * time.Millisecond):
		}
	}
}
