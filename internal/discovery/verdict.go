// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"fmt"
	"regexp"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
)

// facts are all that a verdict on one disk is made from.
type facts struct {
	// devices that show the identity: one, none when the disk is gone, several in a
	// conflict.
	devices  []*block.Device
	identity block.Identity
	// spec and status of the disk's object as they stand.
	spec   v1alpha1.BlockDeviceSpec
	status v1alpha1.BlockDeviceStatus

	// filters is nil when no valid configuration was ever seen.
	filters  *Filters
	topology block.Topology
	usage    *block.Usage
	system   map[string]block.SystemUse

	// elsewhere is what other nodes have said of the disk; nil if they were not asked.
	elsewhere *sightings
	// wiped is how much of a released disk is done, in bytes.
	wiped int64
	// health is nil when nothing is known of it.
	health *Health
	// content is nil until the disk was examined.
	content *examination
}

// verdict says whether a disk may be claimed, and why not.
type verdict struct {
	usable  bool
	reason  string
	message string
	// needsContent is true when everything else speaks for the disk and its content
	// has to be examined.
	needsContent bool
}

// claimable reports whether the disk may be claimed by somebody who takes disks
// of weak identity too.
func (v verdict) claimable() bool {
	return v.usable || v.reason == v1alpha1.ReasonWeakIdentity
}

func no(reason, format string, args ...any) verdict {
	return verdict{reason: reason, message: fmt.Sprintf(format, args...)}
}

// judge is the one place where it is decided whether a disk may be used. It is
// pure. The order is that of what an operator wants to know first.
func judge(f *facts) verdict {
	claim := f.spec.ClaimRef
	released := f.status.ClaimState == v1alpha1.ClaimStateReleased
	switch {
	case len(f.devices) == 0:
		return f.gone()
	case len(f.devices) > 1:
		return f.conflicted()
	case released && !f.cleanedByHand():
		return f.released()
	case claim != nil && !released:
		return f.claimed()
	case !released && f.spec.Reserved != "":
		return no(v1alpha1.ReasonReserved, "reserved: %s", f.spec.Reserved)
	case f.filters == nil:
		return no(v1alpha1.ReasonFiltersMissing, "no valid filters were seen yet in ConfigMap %s: no disk is usable without them", v1alpha1.ConfigMapName)
	}
	d := f.devices[0]
	for _, check := range []func(*block.Device) (verdict, bool){
		f.kindOf, f.filtered, f.inUse, f.partitioned, f.failing, f.twoNodes, f.contentOf,
	} {
		if v, stop := check(d); stop {
			return v
		}
	}
	if f.identity.Weak {
		return no(v1alpha1.ReasonWeakIdentity,
			"blank, but only its place (%s) tells it from another disk: a deviceSelector with allowWeakIdentity: true may take it", f.identity.Value)
	}
	return verdict{usable: true, reason: v1alpha1.ReasonBlank, message: "blank" + f.whence()}
}

// claimed is the verdict on a disk that Berth holds. What the filters say of it changes
// nothing, and is told: an operator who has dropped it may believe it is let go.
func (f *facts) claimed() verdict {
	message := fmt.Sprintf("held by %s %s", f.spec.ClaimRef.Kind, f.spec.ClaimRef.Name)
	if f.filters != nil {
		if decision := f.filters.Decide(f.devices[0], nil); decision.Drop {
			message += "; that it is " + decision.Message + ", counts when it is let go"
		}
	}
	if f.health != nil && f.health.Status == metav1.ConditionFalse {
		message += "; it is failing: " + f.health.Message
	}
	return no(v1alpha1.ReasonClaimed, "%s", message)
}

func (f *facts) gone() verdict {
	was := f.status.Path
	message := "the kernel does not show it"
	if c := condition(&f.status); c != nil && c.Reason == v1alpha1.ReasonGone && was == "" {
		message = c.Message
	} else if was != "" {
		message = fmt.Sprintf("gone; it was %s", was)
	}
	return verdict{reason: v1alpha1.ReasonGone, message: message}
}

func (f *facts) conflicted() verdict {
	paths := make([]string, 0, len(f.devices))
	for _, d := range f.devices {
		paths = append(paths, d.Path)
	}
	if holder := f.commonMultipath(); holder != "" {
		return no(v1alpha1.ReasonInUse, "%s are paths of the multipath device %s", strings.Join(paths, " and "), holder)
	}
	return no(v1alpha1.ReasonConflicted, "%s both say they are %s: none of them is used until one is taken out or reports another identity",
		strings.Join(paths, " and "), f.identity)
}

// commonMultipath is the multipath device that all the devices are paths of.
func (f *facts) commonMultipath() string {
	name := ""
	for _, d := range f.devices {
		if len(d.Holders) != 1 || name != "" && d.Holders[0] != name {
			return ""
		}
		name = d.Holders[0]
	}
	if holder := f.topology[name]; holder != nil && holder.Type == block.TypeMultipath {
		return holder.DMName
	}
	return ""
}

// cleanedByHand is true for a disk that was released with the policy none: such a
// disk is nobody's to wipe but the operator's, and is free as soon as it is blank.
func (f *facts) cleanedByHand() bool {
	w := f.status.Wipe
	return w == nil || w.Policy == v1alpha1.WipeNone
}

// givenBack is the verdict on what a volume has left on a disk that is not to be
// wiped.
func (f *facts) givenBack() verdict {
	again := ""
	if c := f.spec.ClaimRef; c != nil && c.Kind == device.OwnerVolume {
		again = ", or hand it over again (spec.adopt of a LocalVolume)"
	}
	return no(v1alpha1.ReasonHasContent,
		"given back by %s as it was (wipe: none): clean it by hand (wipefs --all, blkdiscard)%s", f.formerHolder(), again)
}

func (f *facts) formerHolder() string {
	if f.spec.ClaimRef == nil {
		return "its holder"
	}
	return f.spec.ClaimRef.Kind + " " + f.spec.ClaimRef.Name
}

func (f *facts) released() verdict {
	if c := condition(&f.status); c != nil && c.Reason == v1alpha1.ReasonWipeFailed {
		return no(v1alpha1.ReasonWipeFailed, "%s", c.Message)
	}
	progress := ""
	if done, size := f.wiped, f.status.SizeBytes; done > 0 && size > 0 {
		progress = fmt.Sprintf(", %d%% done", min(done, size)/max(size/100, 1))
	}
	return no(v1alpha1.ReasonCleaning, "released by %s, being wiped (%s)%s", f.formerHolder(), f.status.Wipe.Policy, progress)
}

var (
	bootArea = regexp.MustCompile("^mmcblk[0-9]+(boot[0-9]+|rpmb|gp[0-9]+)$")
	volatile = regexp.MustCompile("^(ram|zram)[0-9]+$")
)

// overNetwork are the transports of disks that are not this node's own.
var overNetwork = map[string]string{
	"iscsi": "an iSCSI session", "fc": "Fibre Channel", "nvme-tcp": "NVMe over TCP", "nvme-rdma": "NVMe over RDMA",
	"nvme-fc": "NVMe over Fibre Channel", "nvme-loop": "an NVMe target of this node", "tcm_loop": "a SCSI target of this node",
	"rbd": "Ceph RBD", "nbd": "a network block device", "drbd": "DRBD",
}

// kindOf refuses what no configuration makes usable.
func (f *facts) kindOf(d *block.Device) (verdict, bool) {
	switch {
	case d.Err != nil:
		return no(v1alpha1.ReasonUnreadable, "cannot be examined: %v", d.Err), true
	case d.SizeBytes == 0:
		return no(v1alpha1.ReasonUnsupported, "has no medium: its size is 0"), true
	case d.Hidden:
		return no(v1alpha1.ReasonUnsupported, "is a path of a multipath NVMe namespace"), true
	case d.Zoned == "host-managed":
		return no(v1alpha1.ReasonUnsupported, "is host-managed zoned: it cannot be written at random"), true
	case d.Type == block.TypeVolume:
		return no(v1alpha1.ReasonUnsupported, "is an encrypted volume of Berth (%s)", d.DMName), true
	case d.Type == block.TypeLVM:
		return no(v1alpha1.ReasonUnsupported, "is a logical volume of volume group %q", d.VolumeGroup()), true
	case volatile.MatchString(d.KernelName):
		return no(v1alpha1.ReasonUnsupported, "is memory: what is on it is lost at a reboot"), true
	case bootArea.MatchString(d.KernelName):
		return no(v1alpha1.ReasonUnsupported, "is a boot area of an eMMC"), true
	}
	return verdict{}, false
}

func (f *facts) filtered(d *block.Device) (verdict, bool) {
	var system *block.SystemUse
	if use, found := f.system[d.KernelName]; found {
		system = &use
	}
	decision := f.filters.Decide(d, system)
	switch {
	case decision.Drop:
		return no(v1alpha1.ReasonFiltered, "%s", decision.Message), true
	case decision.Named:
		return verdict{}, false
	case overNetwork[d.Transport] != "":
		return no(v1alpha1.ReasonFiltered, "is reached over %s, so it is not this node's alone; name it in the include of a path-filter to use it", overNetwork[d.Transport]), true
	case d.Removable:
		return no(v1alpha1.ReasonFiltered, "is removable; name it in the include of a path-filter to use it"), true
	}
	return verdict{}, false
}

func (f *facts) inUse(d *block.Device) (verdict, bool) {
	if points := mountPoints(f.usage, d.KernelName); len(points) > 0 {
		return no(v1alpha1.ReasonInUse, "mounted at %s", strings.Join(points, " and ")), true
	}
	if f.usage.Swap(d.KernelName) {
		return no(v1alpha1.ReasonInUse, "in use as swap"), true
	}
	if len(d.Holders) > 0 {
		return no(v1alpha1.ReasonInUse, "%s", f.holder(d.Holders[0])), true
	}
	if d.ReadOnly {
		return no(v1alpha1.ReasonReadOnly, "the kernel has it read-only"), true
	}
	return verdict{}, false
}

// holder says what the device on top of a disk makes of it.
func (f *facts) holder(name string) string {
	holder := f.topology[name]
	if holder == nil {
		return "in use by " + name
	}
	switch holder.Type {
	case block.TypeLVM:
		return fmt.Sprintf("member of volume group %q", holder.VolumeGroup())
	case block.TypeMD:
		return "member of the RAID array " + holder.Path
	case block.TypeCrypt, block.TypeVolume:
		return fmt.Sprintf("holds the open encrypted volume %q", holder.DMName)
	case block.TypeMultipath:
		return fmt.Sprintf("a path of the multipath device %q", holder.DMName)
	}
	if holder.DMName != "" {
		return fmt.Sprintf("in use by the device-mapper device %q", holder.DMName)
	}
	return "in use by " + holder.Path
}

func (f *facts) partitioned(d *block.Device) (verdict, bool) {
	if d.Type == block.TypePartition {
		return no(v1alpha1.ReasonUnsupported, "is a partition of /dev/%s: whole disks are used", d.Parent), true
	}
	if len(d.Partitions) > 0 {
		table := d.UdevContent.PartitionTable
		if f.content != nil && f.content.found.PartitionTable != "" {
			table = f.content.found.PartitionTable
		}
		if table == "" {
			return no(v1alpha1.ReasonPartitioned, "has partitions (%s)", strings.Join(d.Partitions, ", ")), true
		}
		return no(v1alpha1.ReasonPartitioned, "has a partition table (%s)", table), true
	}
	return verdict{}, false
}

func (f *facts) contentOf(*block.Device) (verdict, bool) {
	if f.content == nil {
		return verdict{needsContent: true}, true
	}
	reason, message := f.content.words()
	if reason == v1alpha1.ReasonBlank {
		return verdict{}, false
	}
	if reason == v1alpha1.ReasonHasContent && f.status.ClaimState == v1alpha1.ClaimStateReleased {
		return f.givenBack(), true
	}
	return verdict{reason: reason, message: message + f.whence()}, true
}
