// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"errors"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

func mustParse(t testing.TB, text string) *Filters {
	t.Helper()
	filters, err := ParseFilters(text)
	if err != nil {
		t.Fatal(err)
	}
	return filters
}

// goodFacts are those of a disk that is usable.
func goodFacts(t testing.TB) *facts {
	d := &block.Device{KernelName: "vdb", Path: "/dev/vdb", Type: block.TypeDisk, SizeBytes: 1 << 30, Transport: "virtio", Serial: "S"}
	return &facts{
		devices: []*block.Device{d}, identity: block.Identify(d), filters: mustParse(t, DefaultFilters),
		topology: block.Topology{"vdb": d}, usage: &block.Usage{}, content: &examination{blank: true},
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	claim := &v1alpha1.BlockDeviceClaimRef{Kind: "Pool", Name: "fast-node1", UID: "u"}
	content := func(c block.Content) func(*facts) {
		return func(f *facts) { f.content = &examination{offset: 1080, found: c} }
	}
	device := func(change func(*block.Device)) func(*facts) {
		return func(f *facts) { change(f.devices[0]) }
	}
	holder := func(h block.Device) func(*facts) {
		return func(f *facts) {
			f.devices[0].Holders = []string{h.KernelName}
			f.topology[h.KernelName] = &h
		}
	}
	cases := []struct {
		name, reason, message string
		change                func(*facts)
	}{
		{"blank", "Blank", "blank", func(*facts) {}},
		{"gone", "Gone", "gone; it was /dev/vdb", func(f *facts) { f.devices, f.status.Path = nil, "/dev/vdb" }},
		{"gone while claimed", "Gone", "gone; it was /dev/vdb", func(f *facts) { f.devices, f.status.Path, f.spec.ClaimRef = nil, "/dev/vdb", claim }},
		{
			"twice", "Conflicted", "/dev/vdb and /dev/vdc both say they are serial S: none of them is used until one is taken out or reports another identity",
			func(f *facts) { f.devices = append(f.devices, &block.Device{KernelName: "vdc", Path: "/dev/vdc"}) },
		},
		{
			"twice while claimed", "Conflicted", "/dev/vdb and /dev/vdc both say they are serial S: none of them is used until one is taken out or reports another identity",
			func(f *facts) {
				f.devices, f.spec.ClaimRef = append(f.devices, &block.Device{KernelName: "vdc", Path: "/dev/vdc"}), claim
			},
		},
		{"two paths of a multipath device", "InUse", "/dev/vdb and /dev/vdc are paths of the multipath device mpatha", func(f *facts) {
			f.devices[0].Holders = []string{"dm-0"}
			f.devices = append(f.devices, &block.Device{KernelName: "vdc", Path: "/dev/vdc", Holders: []string{"dm-0"}})
			f.topology["dm-0"] = &block.Device{Type: block.TypeMultipath, DMName: "mpatha"}
		}},
		{"claimed, whatever is on it", "Claimed", "held by Pool fast-node1", func(f *facts) {
			f.spec.ClaimRef, f.content = claim, &examination{found: block.Content{Type: "LVM2_member"}}
		}},
		{"claimed, whatever the filters say", "Claimed", `held by Pool fast-node1; that it is dropped by filter "path-filter": /dev/vdb starts with /dev, counts when it is let go`, func(f *facts) {
			f.spec.ClaimRef, f.filters = claim, mustParse(t, "filterconfigs: [{key: path-filter, state: true, exclude: /dev}]")
		}},
		{"released, blank and not proven clean", "Cleaning", "released by Pool fast-node1, being wiped (zero)", func(f *facts) {
			f.spec.ClaimRef, f.status.ClaimState = claim, v1alpha1.ClaimStateReleased
			f.status.Wipe = &v1alpha1.BlockDeviceWipe{Token: "t", Policy: v1alpha1.WipeZero}
		}},
		{"released with policy none, not blank", "HasContent", "given back by Pool fast-node1 as it was (wipe: none): clean it by hand (wipefs --all, blkdiscard)", func(f *facts) {
			f.spec.ClaimRef, f.status.ClaimState = claim, v1alpha1.ClaimStateReleased
			f.status.Wipe = &v1alpha1.BlockDeviceWipe{Policy: v1alpha1.WipeNone}
			f.content = &examination{found: block.Content{Type: "ext4"}}
		}},
		{"reserved", "Reserved", "reserved: for the database", func(f *facts) { f.spec.Reserved = "for the database" }},
		{"no filters", "FiltersMissing", "no valid filters were seen yet in ConfigMap berth-config: no disk is usable without them", func(f *facts) { f.filters = nil }},
		{"the system's disk", "Filtered", "holds the OS: / is mounted from /dev/vdb1", func(f *facts) {
			f.system = map[string]block.SystemUse{"vdb": {MountPoint: "/", Path: "/dev/vdb1"}}
		}},
		{
			"over the network", "Filtered", "is reached over NVMe over TCP, so it is not this node's alone; name it in the include of a path-filter to use it",
			device(func(d *block.Device) { d.Transport = "nvme-tcp" }),
		},
		{"over the network, but named", "Blank", "blank", func(f *facts) {
			f.devices[0].Transport = "iscsi"
			f.filters = mustParse(t, "filterconfigs: [{key: path-filter, state: true, include: /dev/vdb}]")
		}},
		{"removable", "Filtered", "is removable; name it in the include of a path-filter to use it", device(func(d *block.Device) { d.Removable = true })},
		{"read-only", "ReadOnly", "the kernel has it read-only", device(func(d *block.Device) { d.ReadOnly = true })},
		{"member of a volume group in use", "InUse", `member of volume group "customer"`, holder(block.Device{KernelName: "dm-3", Type: block.TypeLVM, DMName: "customer-data"})},
		{"member of an array in use", "InUse", "member of the RAID array /dev/md0", holder(block.Device{KernelName: "md0", Path: "/dev/md0", Type: block.TypeMD})},
		{"open encrypted volume", "InUse", `holds the open encrypted volume "secret"`, holder(block.Device{KernelName: "dm-1", Type: block.TypeCrypt, DMName: "secret"})},
		{"something on top", "InUse", "in use by /dev/bcache0", holder(block.Device{KernelName: "bcache0", Path: "/dev/bcache0"})},
		{"a holder that has just come", "InUse", "in use by dm-9", device(func(d *block.Device) { d.Holders = []string{"dm-9"} })},
		{"partitioned, as the kernel knows", "Partitioned", "has partitions (vdb1, vdb2)", device(func(d *block.Device) { d.Partitions = []string{"vdb1", "vdb2"} })},
		{"partitioned, as udev knows", "Partitioned", "has a partition table (dos)", device(func(d *block.Device) {
			d.Partitions, d.UdevContent.PartitionTable = []string{"vdb1"}, "dos"
		})},
		{"a partition", "Unsupported", "is a partition of /dev/vdb: whole disks are used", device(func(d *block.Device) { d.Type, d.Parent = block.TypePartition, "vdb" })},
		{"an empty partition table", "Partitioned", "has a partition table (gpt)", content(block.Content{Found: true, PartitionTable: "gpt"})},
		{"ext4", "HasContent", `holds ext4 "files" since before Berth; wipe it to use it`, content(block.Content{Type: "ext4", Label: "files"})},
		{"a volume group not active", "HasContent", `member of volume group "customer"`, func(f *facts) {
			f.content = &examination{found: block.Content{Type: "LVM2_member"}, volumeGroup: "customer"}
		}},
		{"swap not in use", "HasContent", "holds a swap area; wipe it to use it", content(block.Content{Type: "swap"})},
		{"an array not assembled", "HasContent", `member of a RAID array (linux_raid_member "host:0"); wipe it to use it`, content(block.Content{Type: "linux_raid_member", Kind: "raid", Label: "host:0"})},
		{"LUKS not open", "HasContent", "holds an encrypted volume (crypto_LUKS); wipe it to use it", content(block.Content{Type: "crypto_LUKS", Kind: "crypto"})},
		{"contradictions", "HasContent", "holds signatures that contradict each other; wipe it to use it", content(block.Content{Found: true, Ambivalent: true})},
		{"what nobody knows", "HasContent", "not blank: data at offset 1080", content(block.Content{})},
		{"a probe that failed", "HasContent", "not blank: data at offset 7 (what it is could not be found out: no blkid)", func(f *facts) {
			f.content = &examination{offset: 7, probeErr: errors.New("no blkid")}
		}},
		{"unreadable", "Unreadable", "cannot be read, so nothing is known: input/output error", func(f *facts) { f.content = &examination{err: errors.New("input/output error")} }},
		{"locked", "InUse", "locked by another program (flock); it is looked at again", func(f *facts) { f.content = &examination{err: volume.ErrBusy} }},
		{"attributes unreadable", "Unreadable", "cannot be examined: EIO", device(func(d *block.Device) { d.Err = errors.New("EIO") })},
		{"zoned", "Unsupported", "is host-managed zoned: it cannot be written at random", device(func(d *block.Device) { d.Zoned = "host-managed" })},
		{"boot area", "Unsupported", "is a boot area of an eMMC", device(func(d *block.Device) { d.KernelName = "mmcblk0boot0" })},
		{"memory", "Unsupported", "is memory: what is on it is lost at a reboot", device(func(d *block.Device) { d.KernelName = "zram0" })},
		{"a logical volume", "Unsupported", `is a logical volume of volume group "vg"`, device(func(d *block.Device) { d.Type, d.DMName = block.TypeLVM, "vg-lv" })},
		{"no medium", "Unsupported", "has no medium: its size is 0", device(func(d *block.Device) { d.SizeBytes = 0 })},
		{"weak identity", "WeakIdentity", "blank, but only its place (pci-1) tells it from another disk: a deviceSelector with allowWeakIdentity: true may take it", func(f *facts) {
			f.identity = block.Identity{Scheme: "by-path", Value: "pci-1", Weak: true}
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := goodFacts(t)
			c.change(f)
			v := judge(f)
			if v.reason != c.reason || v.message != c.message {
				t.Errorf("got  %s: %s\nwant %s: %s", v.reason, v.message, c.reason, c.message)
			}
			if v.usable != (c.reason == v1alpha1.ReasonBlank) {
				t.Errorf("usable = %v", v.usable)
			}
			if v.needsContent {
				t.Error("it asks for the content it has")
			}
		})
	}
}

// TestJudgeReadsOnlyCandidates makes sure that a disk which something else speaks
// against is not read.
func TestJudgeReadsOnlyCandidates(t *testing.T) {
	t.Parallel()
	f := goodFacts(t)
	f.content = nil
	if v := judge(f); !v.needsContent || v.usable || v.reason != "" {
		t.Errorf("a candidate that was not read: %+v", v)
	}
	f.devices[0].Holders = []string{"dm-0"}
	if v := judge(f); v.needsContent || v.reason != v1alpha1.ReasonInUse {
		t.Errorf("a disk in use: %+v", v)
	}
}
