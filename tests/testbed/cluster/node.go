// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-dev/berth/tests/testbed/guest"
	"github.com/berth-dev/berth/tests/testbed/kube"
	"github.com/berth-dev/berth/tests/testbed/nodeimage"
	"github.com/berth-dev/berth/tests/testbed/process"
)

// nodeState is what is kept of a node.
type nodeState struct {
	CPUs      int `json:"cpus"`
	MemoryMiB int `json:"memoryMiB"`
	// Disks are attached in this order when the node starts.
	Disks []guest.Disk `json:"disks"`
	// NetworkCut is set while the node's network is cut.
	NetworkCut bool `json:"networkCut,omitempty"`
	// Archives are the digests of the image archives that the node has, the
	// last imported one last.
	Archives []string `json:"archives,omitempty"`
}

const gib = 1 << 30

// newDisks are the disks of node n: the root disk, the data disks and the
// foreign disks.
func newDisks(n int, imageDir string) []guest.Disk {
	prefix := fmt.Sprintf("N%d", n)
	disks := []guest.Disk{{
		Serial: "ROOT", Class: guest.ClassRoot, Bus: guest.BusVirtio, SizeBytes: nodeimage.RootSizeBytes,
		Image: "root.qcow2", Backing: filepath.Join(imageDir, nodeimage.RootFile),
	}}
	for _, data := range []struct {
		name string
		bus  guest.Bus
		size int64
		wwn  uint64
	}{
		{"FAST-A", guest.BusVirtio, 10 * gib, 0},
		{"FAST-B", guest.BusVirtio, 10 * gib, 0},
		{"DISK-C", guest.BusVirtio, 4 * gib, 0},
		{"DISK-D", guest.BusVirtio, 5 * gib, 0},
		{"NVME", guest.BusNVMe, 8 * gib, 0},
		// NAA 5, with an organization that is nobody's.
		{"SCSI", guest.BusSCSI, 6 * gib, 0x5000000000000100 + uint64(n)},
	} {
		serial := prefix + "-" + data.name
		disks = append(disks, guest.Disk{Serial: serial, Class: guest.ClassData, Bus: data.bus, SizeBytes: data.size, WWN: data.wwn, Image: imageName(serial)})
	}
	for _, foreign := range nodeimage.ForeignDisks {
		serial := foreign.Serial(prefix)
		disks = append(disks, guest.Disk{Serial: serial, Class: guest.ClassForeign, Bus: guest.BusVirtio, SizeBytes: foreign.SizeBytes, Image: imageName(serial)})
	}
	return disks
}

func imageName(serial string) string { return strings.ToLower(serial) + ".img" }

func tapName(n int) string { return fmt.Sprintf("tap%d", n) }

func (c *Cluster) nodeStatePath(node string) string {
	return filepath.Join(c.nodeDir(node), "node.json")
}

func (c *Cluster) loadNode(node string) (nodeState, error) {
	var s nodeState
	content, err := os.ReadFile(c.nodeStatePath(node))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(content, &s); err != nil {
		return s, fmt.Errorf("read %s: %w", c.nodeStatePath(node), err)
	}
	return s, nil
}

func (c *Cluster) saveNode(node string, s nodeState) error {
	return writeJSON(c.nodeStatePath(node), s)
}

// changeNode changes what is kept of a node while no other command changes the node.
// Nothing is kept when change fails.
func (c *Cluster) changeNode(ctx context.Context, node string, change func(s *nodeState) error) error {
	unlock, err := c.lockNode(ctx, node)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := c.loadNode(node)
	if err != nil {
		return err
	}
	if err := change(&s); err != nil {
		return err
	}
	return c.saveNode(node, s)
}

// createNode makes a node's folder with its disks. The digests are of the image
// archives that are on its root disk.
func (c *Cluster) createNode(ctx context.Context, node kube.Node, cpus, memoryMiB int, archives []string) error {
	dir := c.nodeDir(node.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, foreign := range nodeimage.ForeignDisks {
		target := filepath.Join(dir, imageName(foreign.Serial(fmt.Sprintf("N%d", node.Number))))
		if err := copySparse(ctx, filepath.Join(c.state.ForeignDir, foreign.Image()), target); err != nil {
			return err
		}
	}
	s := nodeState{CPUs: cpus, MemoryMiB: memoryMiB, Disks: newDisks(node.Number, c.state.ImageDir), Archives: archives}
	for _, disk := range s.Disks {
		if err := disk.Create(ctx, dir); err != nil {
			return err
		}
	}
	return c.saveNode(node.Name, s)
}

// running returns the node's process, nil if it is powered off.
func (c *Cluster) running(node string) (*process.Process, error) {
	return process.Find(filepath.Join(c.nodeDir(node), guest.PIDFile))
}

// PoweredOn tells whether the node's machine runs.
func (c *Cluster) PoweredOn(node string) (bool, error) {
	if _, err := c.node(node); err != nil {
		return false, err
	}
	running, err := c.running(node)
	return running != nil, err
}

func (c *Cluster) needPower(node string) error {
	on, err := c.PoweredOn(node)
	if err == nil && !on {
		err = fmt.Errorf("%s: %w", node, ErrPoweredOff)
	}
	return err
}

// Kill takes the power from a node: whatever it had not written to its disks is
// lost. A node that is off stays off.
func (c *Cluster) Kill(ctx context.Context, node string) error {
	unlock, err := c.lockNode(ctx, node)
	if err != nil {
		return err
	}
	defer unlock()
	return process.Stop(ctx, filepath.Join(c.nodeDir(node), guest.PIDFile), 0)
}

// Orders of disks that Start knows beside a list of serials.
const (
	OrderReverse = "reverse"
	OrderShuffle = "shuffle"
)

// StartOptions say how a node starts.
type StartOptions struct {
	// DiskOrder changes the order in which the disks other than the root disk
	// are attached, and so the names that the kernel gives them: OrderReverse,
	// OrderShuffle, or serials separated by commas, which come first. Empty
	// keeps the last order.
	DiskOrder string
}

// Start gives a node its power back. It returns as soon as its machine runs;
// WaitReady waits for its kubelet. It fails with ErrPoweredOn if the node runs.
func (c *Cluster) Start(ctx context.Context, node string, options StartOptions) error {
	member, err := c.node(node)
	if err != nil {
		return err
	}
	unlock, err := c.lockNode(ctx, node)
	if err != nil {
		return err
	}
	defer unlock()
	if running, err := c.running(node); err != nil {
		return err
	} else if running != nil {
		return fmt.Errorf("%s: %w", node, ErrPoweredOn)
	}
	s, err := c.loadNode(node)
	if err != nil {
		return err
	}
	if s.Disks, err = orderDisks(s.Disks, options.DiskOrder); err != nil {
		return fmt.Errorf("%s: %w", node, err)
	}
	if err := c.saveNode(node, s); err != nil {
		return err
	}
	return c.boot(ctx, member, s)
}

// boot starts a node's machine.
func (c *Cluster) boot(ctx context.Context, node kube.Node, s nodeState) error {
	tap := tapName(node.Number)
	if err := c.Namespace().AddTap(ctx, tap); err != nil {
		return err
	}
	if s.NetworkCut {
		if err := c.Namespace().Part(ctx, tap); err != nil {
			return err
		}
	}
	argv, err := guest.Machine{
		QEMU: c.state.QEMU, Name: node.Name, Accel: c.state.Accel, CPUs: s.CPUs, MemoryMiB: s.MemoryMiB, Disks: s.Disks,
		Kernel: filepath.Join(c.state.ImageDir, nodeimage.KernelFile), Initrd: filepath.Join(c.state.ImageDir, nodeimage.InitrdFile),
		Append: nodeimage.KernelParameters + " systemd.machine_id=" + node.MachineID(),
		Tap:    tap, MAC: fmt.Sprintf("52:54:00:be:00:%02x", node.Number), Seed: c.files().Seed(node.Name),
	}.Argv()
	if err != nil {
		return err
	}
	started, err := process.Start(process.Spec{
		Name: node.Name, Argv: c.Namespace().Command(argv...), Dir: c.nodeDir(node.Name), Favour: true,
		LogPath: c.logPath(node.Name), PIDPath: filepath.Join(c.nodeDir(node.Name), guest.PIDFile),
	})
	if err != nil {
		return err
	}
	// QEMU refuses a command line at once, in the last line of its log.
	select {
	case <-started.Exited:
		why := strings.TrimSpace(string(Tail(c.logPath(node.Name), 1)))
		return &LogError{Err: fmt.Errorf("%s: QEMU ended at once: %q", node.Name, why), Log: c.logPath(node.Name)}
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(300 * time.Millisecond):
		return nil
	}
}

// orderDisks puts the disks into another order. The root disk stays first.
func orderDisks(disks []guest.Disk, order string) ([]guest.Disk, error) {
	var root, others []guest.Disk
	for _, disk := range disks {
		if disk.Class == guest.ClassRoot {
			root = append(root, disk)
		} else {
			others = append(others, disk)
		}
	}
	switch order {
	case "":
	case OrderReverse:
		slices.Reverse(others)
	case OrderShuffle:
		rand.Shuffle(len(others), func(a, b int) { others[a], others[b] = others[b], others[a] })
	default:
		var first []guest.Disk
		for serial := range strings.SplitSeq(order, ",") {
			at := slices.IndexFunc(others, func(disk guest.Disk) bool { return disk.Serial == serial })
			if at < 0 {
				return nil, fmt.Errorf("order of disks: %s: %w", serial, ErrUnknownDisk)
			}
			first = append(first, others[at])
			others = slices.Delete(others, at, at+1)
		}
		others = append(first, others...)
	}
	return append(root, others...), nil
}

// CutNetwork cuts a node's network: its link stays up, and nothing comes
// through. Commands and hotplug still work. To cut it again changes nothing.
func (c *Cluster) CutNetwork(ctx context.Context, node string) error {
	return c.setNetwork(ctx, node, true)
}

// HealNetwork undoes CutNetwork.
func (c *Cluster) HealNetwork(ctx context.Context, node string) error {
	return c.setNetwork(ctx, node, false)
}

func (c *Cluster) setNetwork(ctx context.Context, node string, cut bool) error {
	member, err := c.node(node)
	if err != nil {
		return err
	}
	return c.changeNode(ctx, node, func(s *nodeState) error {
		s.NetworkCut = cut
		if cut {
			return c.Namespace().Part(ctx, tapName(member.Number))
		}
		return c.Namespace().Join(ctx, tapName(member.Number))
	})
}

// LogError is an error that a log explains.
type LogError struct {
	Err error
	Log string
}

func (e *LogError) Error() string { return e.Err.Error() }

// Unwrap returns the error itself.
func (e *LogError) Unwrap() error { return e.Err }

// withLog says which log explains an error, unless it says so already.
func withLog(err error, log string) error {
	var already *LogError
	if err == nil || errors.As(err, &already) {
		return err
	}
	return &LogError{Err: err, Log: log}
}
