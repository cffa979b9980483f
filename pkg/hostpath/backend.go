// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/btrfs"
	"github.com/berth-dev/berth/pkg/quota"
	"github.com/berth-dev/berth/pkg/volume"
)

// Options of a Backend.
type Options struct {
	// Where the root is.
	Where
	// RootID that Init returned for it.
	RootID string
	// PoolUID that Init was given.
	PoolUID string
	// Reserve returns how much of a filesystem of totalBytes is never handed out;
	// nil means nothing.
	Reserve func(totalBytes int64) int64
	// InUse reports whether a directory, by its path on the host, is mounted
	// somewhere or has a mount in it. Nil means the host's mount table.
	InUse func(dir string) (bool, error)
	// Written reports whether a directory, by its path on the host, or something in it, is
	// mounted somewhere so that it can be written to. Nil means the host's mount table.
	Written func(dir string) (bool, error)
	// Clone makes an open empty file share the blocks of another one. Nil means ioctl_ficlone(2).
	Clone func(to, from int) error
	// Subvolumes are what volumes are where the filesystem has some. Nil means those of btrfs.
	Subvolumes Subvolumes
	// Holder names who has a directory, by its path on the host, mounted, in words; empty
	// when nobody has. Nil means the mount tables of the host's processes.
	Holder func(dir string) (string, error)
	// OtherRoots returns the roots of the node's pools. Nil means that there are no others.
	OtherRoots func() ([]string, error)
	// Room returns the size of the root's filesystem and what can still be written to
	// it. Nil means statfs(2).
	Room func() (totalBytes, availBytes int64, err error)
	// Quotas limit the volumes' directories. Nil means those of the kernel.
	Quotas Quotas
	// Groups limit volumes that are subvolumes. Nil means those of btrfs.
	Groups Groups
	// Trash bounds and observes the removal of deleted volumes.
	Trash TrashOptions
	// Elapsed is how long this process runs, whatever becomes of the time of day; nil
	// means the monotonic clock.
	Elapsed func() time.Duration
	// Log receives what goes on in the background; nil means slog.Default.
	Log *slog.Logger
}

// Backend makes volumes of directories under one root. It implements
// volume.Backend.
//
// It holds nothing open between two calls, so that the root's filesystem can be
// unmounted, and proves anew in each call that the root is the root.
type Backend struct {
	Options
	// accounting is held from the reading of what was promised to the next promise.
	accounting sync.Mutex
	promises   *records[promise]
	projects   projects
	adopting   adopting
	// limiting is held while the limit of a subvolume is set to what its volume was promised.
	limiting sync.Mutex
	restored restored
	kick     chan struct{}
	trash    trashView
	// retaining is held for reading while a volume is moved to what is kept, and for
	// writing while one of what is kept is looked at or taken back.
	retaining sync.RWMutex
	// naming is held while directories above those of volumes are made or removed.
	naming   sync.Mutex
	retained *records[retained]
	snaps    *records[promise]
	sharing  sharing
	copying  copying
	clock    clock
	// step is called before each step that changes something; tests end the process
	// there.
	step func(name string) error
	// syncAll makes all that was written to a filesystem durable (syncfs(2)).
	syncAll func(fd int) error
}

var _ volume.Backend = (*Backend)(nil)

// New returns a backend over a root that Init has made. It touches nothing yet.
func New(o Options) (*Backend, error) {
	if o.RootID == "" || o.PoolUID == "" {
		return nil, fmt.Errorf("%w: root %s: the pool's UID and the root's ID must be given", volume.ErrInvalid, o.Root)
	}
	if o.InUse == nil {
		o.InUse = HostMounts(o.HostRoot).InUse
	}
	if o.Written == nil {
		o.Written = HostMounts(o.HostRoot).Written
	}
	if o.Clone == nil {
		o.Clone = unix.IoctlFileClone
	}
	if o.Subvolumes == nil {
		o.Subvolumes = btrfs.Subvolumes{}
	}
	if o.Holder == nil {
		o.Holder = HostProcesses(o.HostRoot).Holder
	}
	if o.OtherRoots == nil {
		o.OtherRoots = func() ([]string, error) { return nil, nil }
	}
	if o.Reserve == nil {
		o.Reserve = func(int64) int64 { return 0 }
	}
	if o.Quotas == nil {
		o.Quotas = quota.Projects{}
	}
	if o.Groups == nil {
		o.Groups = btrfs.Groups{}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Elapsed == nil {
		began := time.Now()
		o.Elapsed = func() time.Duration { return time.Since(began) }
	}
	o.Trash.setDefaults()
	return &Backend{
		Options:  o,
		promises: newPromises(),
		retained: newRecords(retainedRecordDir, isEntry, readRetained),
		snaps:    newSnapshots(),
		clock:    clock{elapsed: o.Elapsed, since: o.Elapsed()},
		kick:     make(chan struct{}, 1),
		step:     func(string) error { return nil },
		syncAll:  unix.Syncfs,
	}, nil
}

// open opens the root and proves that it is the pool's.
func (b *Backend) open(ctx context.Context) (*os.Root, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	root, err := openRoot(b.Where)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: the root %s is not there; is its filesystem mounted?", volume.ErrPoolUnavailable, b.Root)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: open the root %s: %s", volume.ErrPoolUnavailable, b.Root, err.Error())
	}
	m, err := readMarker(root)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("%w: the root %s has no marker %s; is its filesystem mounted?", volume.ErrPoolUnavailable, b.Root, markerFile)
	case err != nil:
		err = fmt.Errorf("%w: the root %s: %s", volume.ErrPoolUnavailable, b.Root, err.Error())
	case m.RootID != b.RootID || m.PoolUID != b.PoolUID:
		err = fmt.Errorf("%w: the root %s says that it is %s of pool %s, recorded is %s of pool %s", volume.ErrIdentity,
			b.Root, m.RootID, m.PoolUID, b.RootID, b.PoolUID)
	default:
		if err = b.requireFilesystem(root, m); err != nil {
			err = fmt.Errorf("the root %s: %w", b.Root, err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// Locate implements volume.Backend.
func (b *Backend) Locate(ctx context.Context, id string, rec volume.Record) (volume.Location, error) {
	root, p, err := b.find(ctx, id, &rec)
	if err != nil {
		return volume.Location{}, fmt.Errorf("locate volume %s: %w", id, err)
	}
	defer closeRoot(root)
	if err := requireDir(root, p); err != nil {
		return volume.Location{}, fmt.Errorf("locate volume %s: %w", id, err)
	}
	return volume.Location{Directory: path.Join(b.Root, p.dir()), SizeBytes: p.SizeBytes}, nil
}

// List implements volume.Backend.
func (b *Backend) List(ctx context.Context) ([]volume.Found, error) {
	root, err := b.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the volumes: %w", err)
	}
	defer closeRoot(root)
	promised, err := b.promises.all(root)
	if err != nil {
		return nil, fmt.Errorf("list the volumes of %s: %w", b.Root, err)
	}
	found := make([]volume.Found, 0, len(promised))
	for _, p := range promised {
		found = append(found, volume.Found{ID: p.ID, Record: b.record(p)})
	}
	return found, nil
}

// Capacity implements volume.Backend. What is free is the less of what was not
// promised yet and what the filesystem has left, for others may write to it too. What is
// kept of deleted volumes counts as promised, and so do snapshots, and not as volumes.
func (b *Backend) Capacity(ctx context.Context) (volume.Capacity, error) {
	root, err := b.open(ctx)
	if err != nil {
		return volume.Capacity{}, fmt.Errorf("read the capacity: %w", err)
	}
	defer closeRoot(root)
	return b.capacity(root)
}

// capacity is the one function behind Capacity, Create and Grow (I8).
func (b *Backend) capacity(root *os.Root) (volume.Capacity, error) {
	var total, avail int64
	var err error
	if b.Room != nil {
		total, avail, err = b.Room()
	} else {
		total, avail, err = room(root)
	}
	if err != nil {
		return volume.Capacity{}, fmt.Errorf("read the capacity of %s: %w", b.Root, err)
	}
	promised, err := b.promises.all(root)
	if err != nil {
		return volume.Capacity{}, fmt.Errorf("read what %s has promised: %w", b.Root, err)
	}
	reserve := b.Reserve(total)
	c := volume.Capacity{TotalBytes: max(0, total-reserve), Volumes: len(promised)}
	volumes := promised
	// What is kept of deleted volumes has its place as before.
	kept, err := b.allRetained(root)
	if err != nil {
		return volume.Capacity{}, fmt.Errorf("read what %s keeps of deleted volumes: %w", b.Root, err)
	}
	for _, r := range kept {
		r.Volume.at = path.Join(r.dir(), r.Entry)
		volumes = append(volumes, r.Volume)
	}
	snapshots, err := b.allSnapshots(root)
	if err != nil {
		return volume.Capacity{}, fmt.Errorf("read the snapshots of %s: %w", b.Root, err)
	}
	volumes = append(volumes, snapshots...)
	for _, p := range volumes {
		c.AllocatedBytes += p.SizeBytes
	}
	unwritten, err := b.unwritten(root, volumes)
	if err != nil {
		return volume.Capacity{}, fmt.Errorf("read what the volumes in %s have used: %w", b.Root, err)
	}
	// Others may fill the filesystem, too: what is free must be enough for what the volumes
	// have not written yet.
	c.FreeBytes = max(0, min(avail-reserve-unwritten, c.TotalBytes-c.AllocatedBytes))
	c.MaxVolumeBytes = c.FreeBytes
	return c, nil
}

// find opens the root and returns the volume's promise, after comparing it with
// the record if there is one. The caller closes the root when there is no error.
// ErrNotFound: nothing was promised to the volume.
func (b *Backend) find(ctx context.Context, id string, rec *volume.Record) (*os.Root, promise, error) {
	return b.findPromise(ctx, promise{ID: id}, rec)
}

// findPromise is find for the volume or snapshot of that ID.
func (b *Backend) findPromise(ctx context.Context, wanted promise, rec *volume.Record) (*os.Root, promise, error) {
	if err := volume.ValidateID(wanted.ID); err != nil {
		return nil, promise{}, err
	}
	if rec != nil && (rec.Mode != volume.ModeHostpath || rec.Hostpath == nil) {
		return nil, promise{}, fmt.Errorf("the record is of mode %q: %w", rec.Mode, volume.ErrInvalid)
	}
	root, err := b.open(ctx)
	if err != nil {
		return nil, promise{}, err
	}
	p, err := wanted.read(root)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err = b.requireRecordOf(wanted, rec); err == nil {
			err = requireNoDir(root, wanted)
		}
	case err == nil:
		err = b.requireRecordOf(p, rec)
	}
	if err != nil {
		return nil, promise{}, errors.Join(err, root.Close())
	}
	return root, p, nil
}

// requireRecordOf returns ErrIdentity unless a record, if there is one, names the volume of
// a promise. Where nothing was promised it may name any directory outside of volumesDir:
// somebody else may lie there by now.
func (b *Backend) requireRecordOf(p promise, rec *volume.Record) error {
	if rec == nil || rec.Hostpath.RootID == b.RootID &&
		(rec.Hostpath.Directory == p.dir() || p.SizeBytes == 0 && strings.HasPrefix(rec.Hostpath.Directory, namedDir+"/")) {
		return nil
	}
	return fmt.Errorf("recorded is %s in root %s, this is %s in root %s: %w",
		rec.Hostpath.Directory, rec.Hostpath.RootID, p.dir(), b.RootID, volume.ErrIdentity)
}

// requireNoDir returns ErrNotFound when there is nothing, and ErrExists when there
// is a directory to which nothing was promised.
func requireNoDir(root *os.Root, p promise) error {
	info, err := root.Lstat(p.dir())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", p.dir(), volume.ErrNotFound)
	case err != nil:
		return err
	}
	return fmt.Errorf("there is a %s %s that we did not make: %w", kind(info), p.dir(), volume.ErrExists)
}

// requireDir returns nil when the volume's directory is a directory, the one that it was,
// and nothing is mounted over it, ErrNotFound when there is nothing, ErrIdentity otherwise.
func requireDir(root *os.Root, p promise) error {
	err := withVolume(root, p, func(_, fd int) error { return requireIdentity(fd, p) })
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("the directory %s: %w", p.dir(), volume.ErrNotFound)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return fmt.Errorf("%s is not a directory: %w", p.dir(), volume.ErrIdentity)
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("something is mounted over %s: %w", p.dir(), volume.ErrIdentity)
	}
	return err
}

// withVolume runs f with the descriptors of a volume's directory and of the one that that
// is in.
func withVolume(root *os.Root, p promise, f func(parent, fd int) error) error {
	parent, name := p.parent()
	within := withRealDir
	if p.Path == "" {
		// It is there as long as the root is. That it is not is no proof of absence.
		within = withVolumes
	}
	return within(root, parent, func(parentFD int) error {
		fd, err := openDir(parentFD, name)
		if err != nil {
			return fmt.Errorf("open %s: %w", p.dir(), err)
		}
		defer closeFD(fd)
		return f(parentFD, fd)
	})
}

// withVolumes is withDir, whose errors say nothing about what is in the directory.
func withVolumes(root *os.Root, dir string, f func(fd int) error) error {
	var inner error
	if err := withDir(root, dir, func(fd int) error { inner = f(fd); return nil }); err != nil {
		return fmt.Errorf("open %s: %s", dir, err.Error())
	}
	return inner
}

func (b *Backend) record(p promise) volume.Record {
	return volume.Record{
		Mode:      volume.ModeHostpath,
		SizeBytes: p.SizeBytes,
		Hostpath:  &volume.HostpathRecord{Root: b.Root, Directory: p.dir(), RootID: b.RootID},
	}
}
