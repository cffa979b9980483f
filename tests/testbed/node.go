// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/tests/testbed/cluster"
	"github.com/berth-dev/berth/tests/testbed/guest"
)

func runExec(ctx context.Context, arguments []string) error {
	flags := newFlags("exec")
	input := flags.BoolP("stdin", "i", false, "give the command this command's input")
	flags.SetInterspersed(false)
	if err := flags.Parse(arguments); err != nil {
		return usageError{err.Error()}
	}
	if flags.NArg() < 2 {
		return usageError{"too few arguments"}
	}
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	var stdin []byte
	if *input {
		if stdin, err = io.ReadAll(os.Stdin); err != nil {
			return err
		}
	}
	argv := flags.Args()[1:]
	if argv[0] == "--" {
		argv = argv[1:]
	}
	result, err := c.ExecInput(ctx, flags.Arg(0), stdin, argv...)
	os.Stdout.Write(result.Stdout)
	os.Stderr.Write(result.Stderr)
	if err == nil && result.ExitCode != 0 {
		return exitStatus(result.ExitCode)
	}
	return err
}

func runCopy(ctx context.Context, arguments []string) error {
	if len(arguments) != 2 {
		return usageError{"want two arguments"}
	}
	node, path, found := strings.Cut(arguments[1], ":")
	if !found || path == "" {
		return usageError{fmt.Sprintf("%q is not NODE:PATH", arguments[1])}
	}
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	return c.Copy(ctx, arguments[0], node, path)
}

func runLoad(ctx context.Context, arguments []string) error {
	if len(arguments) == 0 {
		return usageError{"too few arguments"}
	}
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	started := time.Now()
	changed, err := c.Load(ctx, arguments[0], arguments[1:]...)
	if err != nil {
		return err
	}
	if len(changed) == 0 {
		fmt.Printf("%s is on the nodes already.\n", arguments[0])
		return nil
	}
	fmt.Printf("Loaded %s into %s in %.1fs.\n", arguments[0], strings.Join(changed, ", "), time.Since(started).Seconds())
	return nil
}

// eachNode does something to each node that the arguments name.
func eachNode(ctx context.Context, arguments []string, done string, do func(context.Context, *cluster.Cluster, string) error) error {
	if len(arguments) == 0 {
		return usageError{"no node"}
	}
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	for _, node := range arguments {
		if err := do(ctx, c, node); err != nil {
			return err
		}
		fmt.Printf("%s: %s\n", node, done)
	}
	return nil
}

func runNodeKill(ctx context.Context, arguments []string) error {
	return eachNode(ctx, arguments, "powered off", func(ctx context.Context, c *cluster.Cluster, node string) error { return c.Kill(ctx, node) })
}

func runNetCut(ctx context.Context, arguments []string) error {
	return eachNode(ctx, arguments, "network cut", func(ctx context.Context, c *cluster.Cluster, node string) error { return c.CutNetwork(ctx, node) })
}

func runNetHeal(ctx context.Context, arguments []string) error {
	return eachNode(ctx, arguments, "network up", func(ctx context.Context, c *cluster.Cluster, node string) error { return c.HealNetwork(ctx, node) })
}

func runNodeStart(ctx context.Context, arguments []string) error {
	flags := newFlags("node start")
	var options cluster.StartOptions
	flags.StringVar(&options.DiskOrder, "disk-order", "", "attach the disks in another order: reverse, shuffle, or serials separated by commas")
	wait := flags.Bool("wait", true, "wait until the node is Ready")
	limit := flags.Duration("timeout", 5*time.Minute, "how long to wait")
	if err := parse(flags, arguments, 1, -1); err != nil {
		return err
	}
	started := time.Now()
	if err := eachNode(ctx, flags.Args(), "powered on", func(ctx context.Context, c *cluster.Cluster, node string) error {
		return c.Start(ctx, node, options)
	}); err != nil || !*wait {
		return err
	}
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	if err := c.WaitReady(ctx, flags.Args()...); err != nil {
		return err
	}
	fmt.Printf("%s: Ready after %.0fs\n", strings.Join(flags.Args(), ", "), time.Since(started).Seconds())
	return nil
}

func runDisks(_ context.Context, arguments []string) error {
	if len(arguments) != 1 {
		return usageError{"want one node"}
	}
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	disks, err := c.Disks(arguments[0])
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SERIAL\tCLASS\tBUS\tSIZE\tUSED\tWWN\tIMAGE")
	for _, disk := range disks {
		wwn := "-"
		if disk.WWN != 0 {
			wwn = fmt.Sprintf("%#x", disk.WWN)
		}
		image := c.ImagePath(arguments[0], disk)
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", disk.Serial, disk.Class, disk.Bus,
			quantity(disk.SizeBytes), quantity(allocated(image)), wwn, image)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	removed, err := c.RemovedDisks(arguments[0])
	if len(removed) > 0 {
		fmt.Println("Unplugged:", strings.Join(removed, ", "))
	}
	return err
}

func quantity(bytes int64) string { return resource.NewQuantity(bytes, resource.BinarySI).String() }

func runDiskAdd(ctx context.Context, arguments []string) error {
	flags := newFlags("disk add")
	serial := flags.String("serial", "", "the disk's serial number")
	size := flags.String("size", "", "the disk's size, as 3Gi")
	bus := flags.String("bus", string(guest.BusVirtio), "virtio, nvme or scsi")
	reports := flags.String("reports", "", "the serial number that the node reads, of a disk that says it is another one")
	failReads := flags.Bool("fail-reads", false, "have every read of the disk fail")
	failWrites := flags.Bool("fail-writes", false, "have every write of the disk fail")
	readOnly := flags.Bool("read-only", false, "have the disk refuse writes")
	wwn := flags.Uint64("wwn", 0, "world wide name of a SCSI disk, as 0x5000000000000201")
	if err := parse(flags, arguments, 1, 1); err != nil {
		return err
	}
	if *serial == "" || *size == "" {
		return usageError{"a disk needs a serial and a size"}
	}
	bytes, err := resource.ParseQuantity(*size)
	if err != nil {
		return usageError{fmt.Sprintf("size %q: %v", *size, err)}
	}
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	disk := guest.Disk{Serial: *serial, Bus: guest.Bus(*bus), SizeBytes: bytes.Value(), WWN: *wwn, Reports: *reports, ReadOnly: *readOnly, FailReads: *failReads, FailWrites: *failWrites}
	if err := c.AddDisk(ctx, flags.Arg(0), disk); err != nil {
		return err
	}
	fmt.Printf("%s: %s plugged in\n", flags.Arg(0), *serial)
	return nil
}

func runDiskRemove(ctx context.Context, arguments []string) error {
	if len(arguments) != 2 {
		return usageError{"want a node and a serial"}
	}
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	if err := c.RemoveDisk(ctx, arguments[0], arguments[1]); err != nil {
		return err
	}
	fmt.Printf("%s: %s unplugged\n", arguments[0], arguments[1])
	return nil
}

func runDiskMove(ctx context.Context, arguments []string) error {
	if len(arguments) != 3 {
		return usageError{"want a node, a serial and another node"}
	}
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	if err := c.MoveDisk(ctx, arguments[0], arguments[1], arguments[2]); err != nil {
		return err
	}
	fmt.Printf("%s: %s plugged in, where %s had it\n", arguments[2], arguments[1], arguments[0])
	return nil
}

func runDiskWarn(ctx context.Context, arguments []string) error {
	if len(arguments) != 3 {
		return usageError{"want a node, a serial and the bits of the warning"}
	}
	bits, err := strconv.ParseUint(arguments[2], 0, 8)
	if err != nil {
		return usageError{fmt.Sprintf("bits %q: want a number up to 255", arguments[2])}
	}
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	if err := c.WarnDisk(ctx, arguments[0], arguments[1], uint8(bits)); err != nil {
		return err
	}
	fmt.Printf("%s: %s says %#x in its health log\n", arguments[0], arguments[1], bits)
	return nil
}

func runForeignDigests(ctx context.Context, arguments []string) error {
	if err := parse(newFlags("foreign-digests"), arguments, 0, 0); err != nil {
		return err
	}
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	digests, err := c.ForeignDigests(ctx)
	if err != nil {
		return err
	}
	changed := 0
	for _, digest := range digests {
		verdict := "unchanged"
		if !digest.Unchanged {
			verdict = "CHANGED"
			changed++
		}
		fmt.Printf("%s  %s  %-16s %s\n", digest.SHA256, digest.Node, digest.Serial, verdict)
	}
	if changed > 0 {
		return fmt.Errorf("%d foreign disks have changed", changed)
	}
	return nil
}

// allocated is how many bytes of a sparse file are on the disk.
func allocated(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return stat.Blocks * 512 // stat(2) counts in 512 bytes
}
