// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"regexp"
	"time"
)

// Accel is how QEMU runs a guest's instructions.
type Accel string

// The accelerators.
const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
)

// Argument is the value of QEMU's -accel.
func (a Accel) Argument() string {
	if a == TCG {
		// One thread per virtual CPU. The translated code of a node fits well
		// into 256 MiB; the default is up to 1 GiB per guest.
		return "tcg,thread=multi,tb-size=256"
	}
	return string(a)
}

// cpu is the value of QEMU's -cpu.
func (a Accel) cpu() string {
	if a == TCG {
		// No node is a hypervisor. The others cost more under emulation than
		// they give: page tables of five levels make every miss of the TLB
		// dearer, "fast" string operations go byte by byte, SMAP ends a translated
		// block at each access to user memory, and a SHA-256 with AVX takes
		// nearly twice as long as without.
		return "max,svm=off,la57=off,erms=off,fsrm=off,smap=off,avx=off"
	}
	return "max"
}

// ProbeMarker is what the initial RAM disk prints and powers off after, when
// the kernel command line has ProbeParameter.
const (
	ProbeMarker    = "testbed: a guest boots"
	ProbeParameter = "testbed.probe"
)

// probeLimit is ample for a kernel with nothing to do under KVM.
const probeLimit = 8 * time.Second

var virtualizationFlags = regexp.MustCompile(`(?m)^flags\s*:.*\b(vmx|svm)\b`)

// Probe chooses the accelerator: KVM where the processor has the instructions
// for it and a guest really boots, and TCG everywhere else. /dev/kvm alone
// proves nothing: in a virtual machine it may exist and not run a stock kernel.
// The second value says why.
func Probe(ctx context.Context, qemu QEMU, kernel, initrd string) (Accel, string) {
	device, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG, "no /dev/kvm"
	}
	device.Close()
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !virtualizationFlags.Match(info) {
		return TCG, "the processor shows neither vmx nor svm"
	}
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	argv := append(qemu.Argv(), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", "kvm", "-cpu", "max", "-m", "512", "-serial", "stdio",
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 "+ProbeParameter)
	out, _ := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if !bytes.Contains(out, []byte(ProbeMarker)) {
		return TCG, "no guest boots with KVM here"
	}
	return KVM, "a guest boots with it"
}
