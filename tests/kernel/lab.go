// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-dev/berth/tests/testbed/guest"
	"github.com/berth-dev/berth/tests/testbed/nodeimage"
)

// lab is a suite and the machine that it runs in.
type lab struct {
	suite
	boot    nodeimage.Boot
	machine machineOptions
	options runOptions
	// log takes all that the tests print.
	log *os.File
	*counts

	line string // what has no end yet of what the tests print
}

const (
	testsImage = "tests.tar"
	// powerBytes is more than the test that switches the machine off has to remember.
	powerBytes = 1 << 20
	// mostLosses of power are more than any test asks for.
	mostLosses = 500
	// testLimit bounds one run of a suite's tests.
	testLimit = 4 * time.Hour
)

// compile makes the disk with the test program: a tar archive, which needs no filesystem.
func (l *lab) compile(ctx context.Context) error {
	program := filepath.Join(l.options.dir, "program")
	command := exec.CommandContext(ctx, "go", "test", "-c", "-ldflags=-s -w", "-o", program, l.suite.dir)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	command.Stderr = os.Stderr
	if err := command.Run(); err != nil {
		return fmt.Errorf("compile the tests of %s: %w", l.suite.dir, err)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	image, err := os.Create(filepath.Join(l.options.dir, testsImage))
	if err != nil {
		return err
	}
	defer image.Close()
	archive := tar.NewWriter(image)
	if err := archive.WriteHeader(&tar.Header{Name: "program", Mode: 0o755, Size: int64(len(content))}); err != nil {
		return err
	}
	if _, err := archive.Write(content); err != nil {
		return err
	}
	if err := archive.Close(); err != nil {
		return err
	}
	return os.Remove(program)
}

func (l *lab) disks() ([]guest.Disk, error) {
	info, err := os.Stat(filepath.Join(l.options.dir, testsImage))
	if err != nil {
		return nil, err
	}
	// Only foreign disks are raw files.
	disks := []guest.Disk{{Serial: "TESTS", Class: guest.ClassForeign, Bus: guest.BusVirtio, SizeBytes: info.Size(), Image: testsImage, ReadOnly: true}}
	if l.options.power {
		disks = append(disks, guest.Disk{Serial: "POWER", Class: guest.ClassData, Bus: guest.BusVirtio, SizeBytes: powerBytes, Image: "power.img"})
	}
	for n := range l.machine.disks {
		serial := fmt.Sprintf("BLANK-%d", n+1)
		disks = append(disks, guest.Disk{
			Serial: serial, Class: guest.ClassData, Bus: guest.BusVirtio, SizeBytes: l.machine.diskMiB << 20, Image: strings.ToLower(serial) + ".img",
		})
	}
	return disks, nil
}

// prepareScript waits for the disks, unpacks the test program and prints the disks' names.
const prepareScript = `set -eu
for serial in $*; do udevadm wait --timeout=120 /dev/disk/by-id/virtio-$serial; done
mkdir -p /run/kernel && cd /run/kernel
tar -xf /dev/disk/by-id/virtio-TESTS
for serial in $*; do readlink -f /dev/disk/by-id/virtio-$serial; done
`

// startScript runs the tests so that they outlive the call, and notes how they ended.
const startScript = `cd /run/kernel && setsid sh -c 'env "$@" >log 2>&1; echo $? >status.new; mv status.new status' sh "$@" >/dev/null 2>&1 </dev/null &`

// followScript prints what the log has from a byte on, and then how the tests ended, if they
// have: that is looked at first, so that nothing is printed after what is seen.
const followScript = `cd /run/kernel; status=$(cat status 2>/dev/null); tail -c +"$1" log; printf '\n%s' "$status"`

// errMachineEnded is a test's doing, if it is to switch the machine off.
var errMachineEnded = errors.New("the machine has ended")

// run boots the machine and runs the tests in it; again, as often as they switch it off.
func (l *lab) run(ctx context.Context) error {
	disks, err := l.disks()
	if err != nil {
		return err
	}
	for losses := 1; ; losses++ {
		status, err := l.life(ctx, disks)
		if l.options.power && errors.Is(err, errMachineEnded) && losses <= mostLosses {
			fmt.Printf("    losses of power: %d\n", losses)
			continue
		}
		if err == nil && status != 0 {
			err = fmt.Errorf("its tests ended with status %d, see %s", status, l.log.Name())
		}
		return err
	}
}

// life is what happens between the machine's start and its end.
func (l *lab) life(ctx context.Context, disks []guest.Disk) (status int, err error) {
	machine, err := l.boot.Start(ctx, nodeimage.MachineOptions{
		Name: "kernel", Dir: l.options.dir, CPUs: l.machine.cpus, MemoryMiB: l.machine.memoryMiB, Disks: disks, Log: l.log,
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, machine.Kill()) }()
	arguments := []string{"/bin/sh", "-c", prepareScript, "sh"}
	for _, disk := range disks {
		arguments = append(arguments, disk.Serial)
	}
	out, err := l.exec(ctx, machine, arguments...)
	if err != nil {
		return 0, err
	}
	paths := map[string]string{}
	for i, path := range strings.Fields(out) {
		paths[disks[i].Serial] = path
	}
	return l.follow(ctx, machine, l.command(disks, paths))
}

// command is what is run in the machine, with its environment before it.
func (l *lab) command(disks []guest.Disk, paths map[string]string) []string {
	var blank []string
	for _, disk := range disks {
		if strings.HasPrefix(disk.Serial, "BLANK-") {
			blank = append(blank, paths[disk.Serial])
		}
	}
	argv := []string{"BERTH_TEST_DISK=" + strings.Join(blank, ",")}
	if l.options.power {
		argv = append(argv, "BERTH_TEST_POWER="+paths["POWER"])
	}
	if l.options.costs != "" {
		argv = append(argv, "BERTH_TEST_COSTS="+l.options.costs)
	}
	return append(argv, "./program", "-test.v", "-test.timeout="+testLimit.String(), "-test.run="+l.tests(l.options.power))
}

// follow starts the tests and tells what they print until they have ended.
func (l *lab) follow(ctx context.Context, machine *nodeimage.Machine, argv []string) (status int, err error) {
	if _, err := l.exec(ctx, machine, append([]string{"/bin/sh", "-c", startScript, "sh"}, argv...)...); err != nil {
		return 0, err
	}
	const pause = 2 * time.Second
	for read := 0; ; {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-machine.Ended:
			return 0, errMachineEnded
		case <-time.After(pause):
		}
		out, err := l.exec(ctx, machine, "/bin/sh", "-c", followScript, "sh", strconv.Itoa(read+1))
		if err != nil {
			select {
			case <-machine.Ended:
				return 0, errMachineEnded
			case <-time.After(pause): // QEMU ends a moment after its guest
				continue
			}
		}
		end := strings.LastIndexByte(out, '\n')
		l.print(out[:end])
		read += end
		if ended := out[end+1:]; ended != "" {
			return strconv.Atoi(ended)
		}
	}
}

func (l *lab) exec(ctx context.Context, machine *nodeimage.Machine, argv ...string) (string, error) {
	result, err := machine.Agent.Exec(ctx, argv, nil)
	if err != nil {
		return "", err
	}
	if result.ExitCode != 0 {
		return "", fmt.Errorf("run %s in the machine: exit status %d: %s", argv[0], result.ExitCode, result.Stderr)
	}
	return string(result.Stdout), nil
}

// print keeps what the tests print, and shows how each of them ended.
func (l *lab) print(text string) {
	_, _ = l.log.WriteString(text) // what cannot be kept is shown all the same
	lines := strings.Split(l.line+text, "\n")
	l.line = lines[len(lines)-1]
	for _, line := range lines[:len(lines)-1] {
		if l.count(line) {
			fmt.Println("   ", line)
		}
	}
}
