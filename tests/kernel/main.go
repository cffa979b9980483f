// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command kernel runs the tests that need disks to destroy and a kernel with device-mapper,
// quotas and filesystems of its own: in a virtual machine, booted from the testbed's node image,
// without Kubernetes. Each package gets a machine with blank disks.
//
//	go run ./tests/kernel                             all of them
//	go run ./tests/kernel --run 'KernelFault' lvm     some
//	go run ./tests/kernel --power lvm                 the test that switches the machine off
//
// What the tests print is kept in build/test/kernel-NAME.log.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/berth-dev/berth/tests/testbed/cluster"
	"github.com/berth-dev/berth/tests/testbed/nodeimage"
)

// suite is a package whose tests are run.
type suite struct {
	name, dir string
	// run selects the tests that need a disk.
	run string
	// power is the test that switches the machine off, if there is one.
	power string
}

var suites = []suite{
	{name: "quota", dir: "./pkg/quota", run: "Kernel"},
	{name: "hostpath", dir: "./pkg/hostpath", run: "Kernel"},
	{name: "sanity", dir: "./internal/sanity", run: "Sanity/disk"},
	{name: "lvm", dir: "./pkg/lvm", run: "Kernel", power: "KernelPowerLoss"},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, pflag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "kernel:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	flags := pflag.NewFlagSet("kernel", pflag.ContinueOnError)
	only := flags.String("run", "", "run these tests only, as go test has it; empty means all that need a disk")
	power := flags.Bool("power", false, "run the test that switches the machine off, instead of the others")
	bench := flags.String("costs", "", "with which numbers of volumes the costs of lvm are measured, as 1,100; empty means not at all")
	options := machineOptions{}
	flags.IntVar(&options.disks, "disks", 7, "how many blank disks the machine has") //nolint:mnd // raid6 with one to spare and one to lose
	flags.Int64Var(&options.diskMiB, "disk-mib", 2048, "the size of each, in MiB")   //nolint:mnd // as the longest test needs
	flags.IntVar(&options.memoryMiB, "memory-mib", 2048, "the machine's memory")     //nolint:mnd // as a node has at least
	flags.IntVar(&options.cpus, "cpus", 1, "the machine's processors; QEMU was seen to crash where it emulated two")
	flags.Usage = func() {
		fmt.Fprintf(os.Stderr, "usage: kernel [flags] [%s]...\n%s", strings.Join(names(), "|"), flags.FlagUsages())
	}
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	chosen, err := choose(flags.Args(), *power)
	if err != nil {
		return err
	}
	dir, err := cluster.DefaultDir()
	if err != nil {
		return err
	}
	alone, err := lock(filepath.Join(dir, "kernel.lock"))
	if err != nil {
		return err
	}
	defer alone.Close()
	boot, err := cluster.BuildMachine(ctx, cluster.UpOptions{Dir: dir, Out: os.Stdout})
	if err != nil {
		return err
	}
	var failed []string
	var sum counts
	for i, s := range chosen {
		if *only != "" {
			s.run = *only
		}
		fmt.Printf("==> [%d/%d] %s: tests %s\n", i+1, len(chosen), s.dir, s.tests(*power))
		began := time.Now()
		counted, err := s.test(ctx, boot, options, runOptions{dir: filepath.Join(dir, "kernel"), power: *power, costs: *bench})
		sum.add(counted)
		fmt.Printf("    [%d/%d] %s: %s, %s\n", i+1, len(chosen), s.dir, counted, time.Since(began).Round(time.Second))
		if err == nil && counted.failed == 0 && counted.passed == 0 {
			err = errors.New("no test ran")
		}
		if err != nil {
			fmt.Printf("    %s: %v\n", s.dir, err)
			failed = append(failed, s.dir)
		}
		if ctx.Err() != nil {
			break
		}
	}
	fmt.Println(sum)
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	return ctx.Err()
}

// lock makes sure that no other run uses the same folder and logs, as long as the file is open.
func lock(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock %s: %w: tests of the kernel run here already", path, err)
	}
	return file, nil
}

// tests are those that are run.
func (s suite) tests(power bool) string {
	if power {
		return s.power
	}
	return s.run
}

func names() (all []string) {
	for _, s := range suites {
		all = append(all, s.name)
	}
	return all
}

// choose returns the suites that are named, all of them if none is.
func choose(wanted []string, power bool) ([]suite, error) {
	for _, name := range wanted {
		if !slices.Contains(names(), name) {
			return nil, fmt.Errorf("no tests of %q: there are %s", name, strings.Join(names(), ", "))
		}
	}
	var chosen []suite
	for _, s := range suites {
		if (len(wanted) == 0 || slices.Contains(wanted, s.name)) && (!power || s.power != "") {
			chosen = append(chosen, s)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("%s switches no machine off", strings.Join(wanted, ", "))
	}
	return chosen, nil
}

// machineOptions are those of each machine.
type machineOptions struct {
	disks, memoryMiB, cpus int
	diskMiB                int64
}

// runOptions say how a suite is run.
type runOptions struct {
	// dir is where the machine is kept while it runs.
	dir   string
	power bool
	costs string
}

// test runs a suite in a machine of its own, and leaves nothing of it but the log.
func (s suite) test(ctx context.Context, boot nodeimage.Boot, machine machineOptions, options runOptions) (counted counts, err error) {
	// What a crash left.
	if err := os.RemoveAll(options.dir); err != nil {
		return counted, err
	}
	if err := os.MkdirAll(options.dir, 0o755); err != nil {
		return counted, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(options.dir)) }()
	if err := os.MkdirAll(filepath.Join("build", "test"), 0o755); err != nil {
		return counted, err
	}
	log, err := os.Create(filepath.Join("build", "test", "kernel-"+s.name+".log"))
	if err != nil {
		return counted, err
	}
	defer log.Close()
	l := &lab{boot: boot, suite: s, options: options, machine: machine, log: log, counts: &counted}
	if err := l.compile(ctx); err != nil {
		return counted, err
	}
	return counted, l.run(ctx)
}
