// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package guest runs virtual machines: it builds QEMU's command line, speaks
// QMP for hotplug and the guest agent's protocol for commands and files inside.
package guest

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// Machine is a virtual machine as QEMU is told to make it.
type Machine struct {
	// QEMU runs it.
	QEMU QEMU
	Name string
	// Accel is QEMU's accelerator, as Probe chose it.
	Accel     Accel
	CPUs      int
	MemoryMiB int
	// Kernel, Initrd and Append boot Linux directly.
	Kernel, Initrd, Append string
	// Disks are attached in this order, which decides the names that the
	// guest's kernel gives them.
	Disks []Disk
	// Tap is the host's end of the guest's network, empty for none.
	Tap string
	MAC string
	// Seed is a file that the guest reads through fw_cfg as SeedName.
	Seed string
	// NoReboot ends QEMU when the guest reboots.
	NoReboot bool
}

// Files in a guest's folder, which is QEMU's working folder. They are given to
// QEMU by these short names because a Unix socket's path is limited to 107
// bytes (unix(7)) and the folder may be deep.
const (
	QMPSocket   = "qmp.sock"
	AgentSocket = "agent.sock"
	ConsoleLog  = "console.log"
	PIDFile     = "qemu.pid"
)

// SeedName is the fw_cfg name of the seed. The guest finds it under
// /sys/firmware/qemu_fw_cfg/by_name/.
const SeedName = "opt/dev.berth.testbed"

const (
	scsiController = "scsi0"
	// rootPorts is how many virtio and NVMe disks a guest can have beside its
	// root disk. Each has a root port of its own, because a q35 machine's root
	// bus knows no hotplug; eight ports share a slot.
	rootPorts    = 24
	firstSlot    = 0x1b
	portsPerSlot = 8
)

func portName(n int) string { return fmt.Sprintf("port%d", n) }

// processors are at least two that the guest may have, though it has one only.
//
// With one at most TCG leaves out what makes the guest's locked instructions atomic
// (CF_PARALLEL, tcg_cpu_init_cflags in accel/tcg), and with it the full barrier that Linux makes
// of one. QEMU's other threads run beside the guest all the same: the guest's driver of a
// virtio disk then writes where it wants to be told and looks for what is done in the wrong
// order, is not told of the last requests, and waits for them for ever (seen after some tens of
// thousands of writes: x-query-virtio-queue-status shows all of them as used).
func (m Machine) processors() string {
	return fmt.Sprintf("%d,maxcpus=%d", m.CPUs, max(m.CPUs, 2)) //nolint:mnd // two, as said
}

// Argv is the command line of QEMU, to be run in the guest's folder.
func (m Machine) Argv() ([]string, error) {
	argv := append(m.QEMU.Argv(),
		"-name", m.Name, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35,sata=off,smbus=off", "-accel", m.Accel.Argument(), "-cpu", m.Accel.cpu(),
		"-smp", m.processors(), "-m", strconv.Itoa(m.MemoryMiB),
		"-kernel", m.Kernel, "-initrd", m.Initrd, "-append", m.Append,
		"-serial", "file:"+ConsoleLog,
		"-qmp", "unix:"+QMPSocket+",server=on,wait=off",
		"-chardev", "socket,id=agent,path="+AgentSocket+",server=on,wait=off",
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
		// Memory that the guest frees goes back to the machine.
		"-device", "virtio-balloon-pci,free-page-reporting=on",
		"-device", "virtio-scsi-pci,id="+scsiController,
	)
	if m.NoReboot {
		argv = append(argv, "-no-reboot")
	}
	if m.Seed != "" {
		argv = append(argv, "-fw_cfg", "name="+SeedName+",file="+m.Seed)
	}
	if m.Tap != "" {
		argv = append(argv, "-netdev", "tap,id=net0,ifname="+m.Tap+",script=no,downscript=no",
			"-device", "virtio-net-pci,netdev=net0,romfile=,mac="+m.MAC)
	}
	for port := range rootPorts {
		argv = append(argv, "-device", fmt.Sprintf("pcie-root-port,id=%s,bus=pcie.0,chassis=%d,addr=%#x.%d,multifunction=on",
			portName(port), port+1, firstSlot+port/portsPerSlot, port%portsPerSlot))
	}
	port := 0
	for _, disk := range m.Disks {
		if err := disk.Validate(); err != nil {
			return nil, fmt.Errorf("machine %s: %w", m.Name, err)
		}
		bus := ""
		if disk.Class != ClassRoot && disk.Bus != BusSCSI {
			if port == rootPorts {
				return nil, fmt.Errorf("machine %s: more than %d disks", m.Name, rootPorts)
			}
			bus = portName(port)
			port++
		}
		for _, option := range []struct {
			flag  string
			value map[string]any
		}{{"-blockdev", disk.blockdev()}, {"-device", disk.device(bus)}} {
			encoded, err := json.Marshal(option.value)
			if err != nil {
				return nil, err
			}
			argv = append(argv, option.flag, string(encoded))
		}
	}
	return argv, nil
}
