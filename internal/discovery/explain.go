// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/berth-dev/berth/pkg/block"
)

// ExplainOptions say what to explain.
type ExplainOptions struct {
	// Filters of the configuration, as FromConfigMap returns them.
	Filters *Filters
	// NodeLabels choose among its rules.
	NodeLabels labels.Set
	// HostRoot, SysRoot and Runner as in Options.
	HostRoot string
	SysRoot  string
	Runner   block.Runner
}

// Explanation is what an agent with this configuration would say of one disk.
type Explanation struct {
	Path      string
	SizeBytes int64
	Model     string
	Serial    string
	// Usable, Reason and Message are those of the condition Usable.
	Usable  bool
	Reason  string
	Message string
	// Rule is what the filters say: which of them drops the disk or keeps it.
	Rule string
}

// Explain judges every disk of this node by the function that agents use, without a
// cluster. It only reads. What the cluster would know is not known: a disk that a pool
// or a volume of Berth's holds is told by what is on it.
func Explain(ctx context.Context, opts ExplainOptions) ([]Explanation, error) {
	sysfs := block.Sysfs{Root: cmp.Or(opts.SysRoot, opts.HostRoot+"/sys"), HostRoot: opts.HostRoot}
	devices, err := sysfs.Devices(ctx)
	if err != nil {
		return nil, fmt.Errorf("look at the block devices: %w", err)
	}
	usage, err := sysfs.Usage(ctx, devices)
	if err != nil {
		return nil, fmt.Errorf("find out who uses the block devices: %w", err)
	}
	topology := block.NewTopology(devices)
	filters := opts.Filters.forNode(opts.NodeLabels)
	x := explanations{
		examiner: newExaminer(sysfs, block.Prober{Runner: opts.Runner, HostRoot: opts.HostRoot}),
		facts: facts{
			filters: filters, topology: topology, usage: usage,
			system: topology.SystemDevices(usage, filters.SystemMountPoints()),
		},
		twins: map[block.Identity][]*block.Device{},
	}
	var disks []*block.Device
	for i := range devices {
		d := &devices[i]
		// Empty loop devices, paths of multipath namespaces, and what stands on disks
		// would only hide the disks.
		if d.Type == block.TypePartition || d.Type == block.TypeLVM || d.Type == block.TypeVolume || d.SizeBytes == 0 || d.Hidden {
			continue
		}
		disks = append(disks, d)
		x.twins[block.Identify(d)] = append(x.twins[block.Identify(d)], d)
	}
	all := make([]Explanation, 0, len(disks))
	for _, d := range disks {
		all = append(all, x.explain(ctx, d))
	}
	slices.SortFunc(all, func(a, b Explanation) int { return cmp.Compare(a.Path, b.Path) })
	return all, ctx.Err()
}

// explanations share what was read once for all disks.
type explanations struct {
	examiner *examiner
	facts    facts
	twins    map[block.Identity][]*block.Device
}

func (x *explanations) explain(ctx context.Context, d *block.Device) Explanation {
	f := x.facts
	f.identity = block.Identify(d)
	f.devices = x.twins[f.identity]
	v := judge(&f)
	if v.needsContent {
		f.content = x.examiner.examine(ctx, d)
		v = judge(&f)
	}
	var system *block.SystemUse
	if use, found := f.system[d.KernelName]; found {
		system = &use
	}
	return Explanation{
		Path: d.Path, SizeBytes: d.SizeBytes, Model: d.Model, Serial: d.Serial,
		Usable: v.usable, Reason: v.reason, Message: v.message,
		Rule: cmp.Or(f.filters.Decide(d, system).Message, "no filter and no rule names it"),
	}
}
