// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

// examineTimeout is how long a disk may take to answer. One that hangs stays
// unreadable; the read that hangs in the kernel cannot be ended.
const examineTimeout = 30 * time.Second

// examination is what was seen on a disk.
type examination struct {
	// blank is true when head and tail are zero; offset is where they are not.
	blank  bool
	offset int64
	// found is what libblkid makes of what is there.
	found block.Content
	// cryptoErase is true when the disk can be erased by its key.
	cryptoErase bool
	// volumeGroup that an LVM member says it is part of.
	volumeGroup string
	// err is why nothing is known; probeErr why only the offset is known.
	err, probeErr error
}

// retry is when to look again at a disk that could not be looked at, though no
// event tells that it can be now; 0 for one that could.
func (e *examination) retry() time.Duration {
	switch {
	case errors.Is(e.err, volume.ErrBusy):
		return lockedRetry
	case e.err != nil:
		return unreadableRetry
	}
	return 0
}

// words turn an examination into a reason and a message.
func (e *examination) words() (reason, message string) {
	c := e.found
	label := ""
	if c.Label != "" {
		label = fmt.Sprintf(" %q", c.Label)
	}
	switch {
	case errors.Is(e.err, volume.ErrBusy):
		return v1alpha1.ReasonInUse, "locked by another program (flock); it is looked at again"
	case e.err != nil:
		return v1alpha1.ReasonUnreadable, fmt.Sprintf("cannot be read, so nothing is known: %v", e.err)
	case e.blank:
		return v1alpha1.ReasonBlank, "blank"
	case c.PartitionTable != "":
		return v1alpha1.ReasonPartitioned, fmt.Sprintf("has a partition table (%s)", c.PartitionTable)
	case c.Ambivalent:
		return v1alpha1.ReasonHasContent, "holds signatures that contradict each other; wipe it to use it"
	case c.Type == "LVM2_member" && e.volumeGroup != "":
		return v1alpha1.ReasonHasContent, fmt.Sprintf("member of volume group %q", e.volumeGroup)
	case c.Type == "LVM2_member":
		return v1alpha1.ReasonHasContent, "holds an LVM physical volume; wipe it to use it"
	case c.Type == "swap":
		return v1alpha1.ReasonHasContent, "holds a swap area" + label + "; wipe it to use it"
	case c.Kind == "raid":
		return v1alpha1.ReasonHasContent, fmt.Sprintf("member of a RAID array (%s%s); wipe it to use it", c.Type, label)
	case c.Kind == "crypto":
		return v1alpha1.ReasonHasContent, fmt.Sprintf("holds an encrypted volume (%s%s); wipe it to use it", c.Type, label)
	case c.Type != "":
		return v1alpha1.ReasonHasContent, fmt.Sprintf("holds %s%s since before Berth; wipe it to use it", c.Type, label)
	case e.probeErr != nil:
		return v1alpha1.ReasonHasContent, fmt.Sprintf("not blank: data at offset %d (what it is could not be found out: %v)", e.offset, e.probeErr)
	}
	return v1alpha1.ReasonHasContent, fmt.Sprintf("not blank: data at offset %d", e.offset)
}

// examiner looks at the content of disks, read-only.
type examiner struct {
	sysfs  block.Sysfs
	prober block.Prober
	// content reads a disk: read, but for tests without disks.
	content func(context.Context, *block.Device) *examination
	// probe asks libblkid alone, but for tests without disks.
	probe func(context.Context, *block.Device) (block.Content, error)

	mu sync.Mutex
	// hanging are the disks that have not answered yet, though nobody waits for it any more.
	hanging map[hungDisk]bool
}

// hungDisk is one appearance of a disk.
type hungDisk struct {
	kernelName string
	diskSeq    uint64
}

func newExaminer(sysfs block.Sysfs, prober block.Prober) *examiner {
	x := &examiner{sysfs: sysfs, prober: prober, hanging: map[hungDisk]bool{}}
	x.content = x.read
	x.probe = func(ctx context.Context, d *block.Device) (block.Content, error) { return x.prober.Probe(ctx, d.Path) }
	return x
}

// examine reads a disk under udev's lock. It returns within examineTimeout, also
// when the disk does not answer. Each read that hangs holds a thread, so a disk has one
// such read at a time, and is not waited for while it has.
func (x *examiner) examine(ctx context.Context, d *block.Device) *examination {
	disk := hungDisk{d.KernelName, d.DiskSeq}
	noAnswer := func(err error) *examination {
		return &examination{err: fmt.Errorf("%s did not answer: %w", d.Path, err)}
	}
	x.mu.Lock()
	hangs := x.hanging[disk]
	x.mu.Unlock()
	if hangs {
		return noAnswer(context.DeadlineExceeded)
	}
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	result := make(chan *examination, 1)
	go func() {
		e := x.content(ctx, d)
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.hanging, disk)
		result <- e
	}()
	select {
	case e := <-result:
		return e
	case <-ctx.Done():
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	select {
	case e := <-result: // just now
		return e
	default:
		x.hanging[disk] = true
		return noAnswer(ctx.Err())
	}
}

func (x *examiner) read(ctx context.Context, d *block.Device) *examination {
	node := x.sysfs.Node(d)
	lock, err := block.SharedLock(node)
	if err != nil {
		return &examination{err: err}
	}
	defer lock.Close()
	file, err := block.OpenReadOnly(node)
	if err != nil {
		return &examination{err: err}
	}
	defer file.Close()
	if err := block.RequireNumber(file, d.Major, d.Minor); err != nil {
		return &examination{err: err}
	}
	size, err := block.SizeBytes(file)
	if err != nil {
		return &examination{err: err}
	}
	// One that does not answer is one that cannot: it can be read and written all the same.
	erasable := false
	if strings.HasPrefix(d.KernelName, "nvme") {
		erasable, _ = block.CryptoErasable(file)
	}
	offset, blank, err := block.BlankOnDisk(file, size)
	if err != nil || blank {
		return &examination{blank: blank && err == nil, cryptoErase: erasable, err: err}
	}
	e := &examination{offset: offset, cryptoErase: erasable}
	// What libblkid knows lies where Blank has read (block.EdgeBytes): a blank disk
	// needs no program to be started.
	e.found, e.probeErr = x.probe(ctx, d)
	if e.found.Type == "LVM2_member" {
		e.volumeGroup = block.VolumeGroupOnDisk(file)
	}
	return e
}
