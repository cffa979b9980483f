// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/quota"
	"github.com/berth-dev/berth/pkg/volume"
)

// Quotas limit what directories can hold; quota.Projects are the real ones. Directories are
// given as open descriptors.
type Quotas interface {
	// Check returns quota.ErrUnsupported, with the reason, where limits do not hold.
	Check(dir int) error
	// Usage returns what a project has and may have, all zero when it was never used.
	Usage(dir int, project uint32) (quota.Usage, error)
	// SetLimit limits a project; 0 takes the limit away.
	SetLimit(dir int, project uint32, limitBytes int64) error
	// ProjectOf returns the project of a directory.
	ProjectOf(dir int) (project uint32, inherited bool, err error)
	// Assign gives a directory a project, which what is made in it gets, too.
	Assign(dir int, project uint32) error
	// AssignFile gives a file a project.
	AssignFile(fd int, project uint32) error
}

const (
	// firstProject is where Berth's projects begin: above those that people number by hand and
	// those that kubelet takes (from 1048577 on, pkg/volume/util/fsquota). Whatever is in use
	// there all the same is left out.
	firstProject uint32 = 1 << 30
	lastProject  uint32 = 1<<31 - 1
)

// taken are the projects that a call of this process is about to use, of all roots: two of them
// may be on one filesystem. A project is the filesystem's to count as soon as its directory has
// it.
var taken = struct {
	sync.Mutex
	projects map[uint32]bool
}{projects: map[uint32]bool{}}

// projects remembers where the search for a free one goes on.
type projects struct {
	mu   sync.Mutex
	next uint32
}

// Limits returns nil when the sizes of new volumes are enforced by the root's filesystem, and
// an error that wraps quota.ErrUnsupported and says why when they are promises only. Volumes
// that were made while they were not enforced stay as they are.
func (b *Backend) Limits(ctx context.Context) error {
	root, err := b.open(ctx)
	if err != nil {
		return fmt.Errorf("look whether sizes are enforced: %w", err)
	}
	defer closeRoot(root)
	err = b.checkLimits(root)
	if can, _ := canLimit(err); b.restored.told(can) {
		b.Kick()
	}
	return err
}

// checkLimits is Limits of an open root.
func (b *Backend) checkLimits(root *os.Root) error {
	switch has, err := b.hasSubvolumes(root); {
	case err != nil:
		return err
	case !has:
		return withDir(root, volumesDir, b.Quotas.Check)
	}
	b.sharing.mu.Lock()
	directories := b.sharing.tried && !b.sharing.instant
	b.sharing.mu.Unlock()
	if directories {
		return fmt.Errorf("%w: volumes are directories here, and a btrfs limits nothing but subvolumes, which could not be made when they were tried (see the agent's log)", quota.ErrUnsupported)
	}
	return withDir(root, volumesDir, b.Groups.Check)
}

// chooseProject gives a volume that has no directory yet a project where the root has quotas of
// those, and says that it will have a group where it has quotas of subvolumes.
// The project is nobody else's until release is called. One that is written down already is
// kept, unless somebody else has got it since.
func (b *Backend) chooseProject(root *os.Root, p promise) (_ promise, release func(), err error) {
	none := func() {}
	switch err := requireNewDir(root, p); {
	case errors.Is(err, errOpened):
		return p, none, nil // what it is counted by was decided when it was made
	case err != nil:
		return p, none, err
	}
	return b.takeProject(root, p)
}

// takeProject is chooseProject, whatever there is of the directory.
func (b *Backend) takeProject(root *os.Root, p promise) (_ promise, release func(), err error) {
	none := func() {}
	can, err := canLimit(b.checkLimits(root))
	if err != nil {
		return p, none, err
	}
	switch subvolumes, err := b.hasSubvolumes(root); {
	case err != nil:
		return p, none, err
	case subvolumes || !can:
		p.countedBy(0, can)
		return p, none, nil
	}
	promised, err := b.promises.all(root)
	if err != nil {
		return p, none, err
	}
	others := map[uint32]bool{}
	for _, o := range promised {
		others[o.Project] = o.ID != p.ID || others[o.Project]
	}
	kept, err := b.allRetained(root)
	if err != nil {
		return p, none, err
	}
	for _, r := range kept {
		others[r.Volume.Project] = true
	}
	snapshots, err := b.allSnapshots(root)
	if err != nil {
		return p, none, err
	}
	for _, o := range snapshots {
		others[o.Project] = o.ID != p.ID || others[o.Project]
	}
	err = withDir(root, volumesDir, func(dir int) error {
		project, err := b.freeProject(root, dir, p, others)
		p.countedBy(project, false)
		return err
	})
	if err != nil {
		return p, none, err
	}
	return p, func() {
		taken.Lock()
		defer taken.Unlock()
		delete(taken.projects, p.Project)
	}, nil
}

// freeProject finds a project that nothing is counted by, nobody is about to use, no other
// volume of the root has, and nothing is limited by, and takes it. What is limited may be the
// project of a volume of another root, whose pod has taken its files out of the count.
func (b *Backend) freeProject(root *os.Root, dir int, p promise, others map[uint32]bool) (uint32, error) {
	b.projects.mu.Lock()
	defer b.projects.mu.Unlock()
	free := func(project uint32) (bool, error) {
		taken.Lock()
		defer taken.Unlock()
		if project < firstProject || others[project] || taken.projects[project] {
			return false, nil
		}
		u, err := b.Quotas.Usage(dir, project)
		if err != nil || u.Inodes > 0 || u.UsedBytes > 0 || u.LimitBytes > 0 {
			return false, err
		}
		taken.projects[project] = true
		return true, nil
	}
	if p.Project != 0 {
		if ok, err := b.ownProject(root, p, free); ok || err != nil {
			return p.Project, err
		}
	}
	if b.projects.next < firstProject {
		b.projects.next = firstProject
		for project := range others {
			b.projects.next = max(b.projects.next, project+1)
		}
	}
	for range lastProject - firstProject {
		project := b.projects.next
		if b.projects.next++; b.projects.next > lastProject {
			b.projects.next = firstProject
		}
		if ok, err := free(project); ok || err != nil {
			return project, err
		}
	}
	return 0, fmt.Errorf("%w: every project of the filesystem is in use", volume.ErrNoSpace)
}

// ownProject reports whether a volume can keep the project that it has written down: it is
// free, or its own directory, which a killed call has left, is what has it.
func (b *Backend) ownProject(root *os.Root, p promise, free func(uint32) (bool, error)) (bool, error) {
	var project uint32
	err := withVolume(root, p, func(_, fd int) (err error) {
		project, _, err = b.Quotas.ProjectOf(fd)
		return err
	})
	switch {
	case err != nil && !errors.Is(err, unix.ENOENT):
		return false, err
	case err == nil && project == p.Project:
		return true, nil
	}
	return free(p.Project)
}

// errOpened: the directory was opened to everybody.
var errOpened = errors.New("the directory is in use")

// requireNewDir returns nil when a volume has no directory, or one that was never opened to
// anybody, and errOpened otherwise.
func requireNewDir(root *os.Root, p promise) error {
	switch err := requireDir(root, p); {
	case errors.Is(err, volume.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return withVolume(root, p, func(_, fd int) error {
		fresh, err := isFresh(fd)
		if err == nil && !fresh {
			err = errOpened
		}
		return err
	})
}

// unwritten is what volumes were promised and have no blocks of their own for yet, as far as the
// filesystem counts it: of those without a quota nothing is known.
//
// Blocks that several share are counted for each of them, and are there once. How many they
// are is not known either, but that the family has as many as its largest has: what the others
// have may all be shared, and may have to be written anew.
func (b *Backend) unwritten(root *os.Root, volumes []promise) (sizeBytes int64, err error) {
	if can, err := canLimit(b.checkLimits(root)); err != nil || !can {
		return 0, err
	}
	type family struct{ usedBytes, largestBytes int64 }
	families := map[string]family{}
	for _, p := range volumes {
		if !p.counted() {
			continue
		}
		u, err := b.usage(root, p)
		if err != nil {
			return 0, err
		}
		sizeBytes += max(0, p.SizeBytes-u.UsedBytes)
		f := families[p.family()]
		families[p.family()] = family{f.usedBytes + u.UsedBytes, max(f.largestBytes, u.UsedBytes)}
	}
	for _, f := range families {
		sizeBytes += f.usedBytes - f.largestBytes
	}
	return sizeBytes, nil
}

// usage is what is counted for a volume; nothing for one of which nothing is.
func (b *Backend) usage(root *os.Root, p promise) (u quota.Usage, err error) {
	switch {
	case p.Project != 0:
		err = withDir(root, volumesDir, func(dir int) error {
			u, err = b.Quotas.Usage(dir, p.Project)
			return err
		})
	case p.Qgroup:
		u, err = b.subvolumeUsage(root, p.place())
	}
	return u, err
}

// usedBytes is what is counted for a volume; negative where nothing is.
func (b *Backend) usedBytes(root *os.Root, p promise) int64 {
	if !p.counted() {
		return -1
	}
	if can, err := canLimit(b.checkLimits(root)); err != nil || !can {
		return -1
	}
	u, err := b.usage(root, p)
	if err != nil {
		return -1
	}
	return u.UsedBytes
}

// limit sets a volume's limit to what it was promised. It does nothing where it has none.
func (b *Backend) limit(root *os.Root, p promise) error {
	parent, name := p.parent()
	return b.limitAt(root, parent, name, p)
}

// limitDurably is limit for a volume that nothing is made durable for afterwards. The kernel
// writes the limit of a project down when it likes, in the order in which things happened: so it
// is on the disk with a file that was made after it. That of a subvolume is set again when it is
// lost; see restoreLimits.
func (b *Backend) limitDurably(root *os.Root, p promise) error {
	if err := b.limit(root, p); err != nil || p.Project == 0 {
		return err
	}
	if err := b.step("write behind the limit"); err != nil {
		return err
	}
	err := writeFile(root, p.file(), p) // what was not renamed into place means nothing
	if errors.Is(err, volume.ErrNoSpace) {
		b.Log.Warn("The limit of a volume is lost if the power fails now", "root", b.Root, "volume", p.Name, "bytes", p.SizeBytes, "cause", err)
		err = nil
	}
	return errors.Join(err, b.dropTmp(root, p.file()))
}

// limitAt is limit for a volume whose directory is elsewhere as yet.
func (b *Backend) limitAt(root *os.Root, parent, name string, p promise) error {
	if p.Qgroup {
		b.limiting.Lock()
		defer b.limiting.Unlock()
		return b.limitSubvolume(root, parent, name, p)
	}
	return b.limitProject(root, p)
}

// limitProject is limit for a volume that may have no directory yet.
func (b *Backend) limitProject(root *os.Root, p promise) error {
	if p.Project == 0 {
		return nil
	}
	if err := b.step("limit"); err != nil {
		return err
	}
	return withDir(root, volumesDir, func(dir int) error { return b.Quotas.SetLimit(dir, p.Project, p.SizeBytes) })
}

// assign lets a new directory be counted by the volume's project.
func (b *Backend) assign(fd int, p promise) error {
	if p.Project == 0 {
		return nil
	}
	if err := b.step("assign project"); err != nil {
		return err
	}
	return b.Quotas.Assign(fd, p.Project)
}

// unlimit gives up the limit of a volume that lies at a place, before it goes into the trash: as
// long as files are counted by its project nobody else gets that. It is the project that is
// written down, and only where the directory has it, too: a pod may give its directory that of
// another volume, whose limit it is then, and may have taken all it had out of its own, which
// then can be somebody else's. For subvolumes see
// unlimitSubvolume.
func (b *Backend) unlimit(root *os.Root, parent, name string, p promise) error {
	if p.Project == 0 {
		return nil
	}
	return withRealDir(root, parent, func(parentFD int) error {
		if b.Quotas.Check(parentFD) != nil {
			return nil // nothing is limited there
		}
		fd, err := openDir(parentFD, name)
		if err != nil {
			return nil // whoever moves it says what is wrong
		}
		defer closeFD(fd)
		project, _, err := b.Quotas.ProjectOf(fd)
		if err != nil {
			return err
		}
		if project != p.Project {
			b.Log.Warn("The directory of a deleted volume has another project than it was given; the limits of both are left", "root", b.Root,
				"volume", p.Name, "project", p.Project, "found", project)
			return nil
		}
		if err := b.step("unlimit"); err != nil {
			return err
		}
		return b.Quotas.SetLimit(parentFD, p.Project, 0)
	})
}

// unlimitSubvolume gives up the limit of a subvolume in the trash, before it is removed.
func (b *Backend) unlimitSubvolume(trash int, name string) error {
	entry, err := b.countedIn(trash, name)
	if err != nil || entry.subvolume == 0 {
		return err
	}
	u, err := b.trashUsage(trash, entry)
	if err != nil || u.LimitBytes == 0 {
		return err
	}
	if err := b.step("unlimit"); err != nil {
		return err
	}
	return b.Groups.SetLimit(trash, entry.subvolume, 0)
}

// countedIn returns what a directory in an open one, such as a deleted volume, is counted by,
// nothing where it is not. What is no directory is not: the removal says what is wrong.
func (b *Backend) countedIn(trash int, name string) (trashEntry, error) {
	fd, err := openDir(trash, name)
	if err != nil {
		return trashEntry{}, nil
	}
	defer closeFD(fd)
	switch is, err := b.Subvolumes.Is(fd); {
	case err != nil:
		return trashEntry{}, err
	case is:
		if can, err := canLimit(b.Groups.Check(trash)); err != nil || !can {
			return trashEntry{}, err
		}
		id, err := b.Subvolumes.ID(fd)
		return trashEntry{subvolume: id}, err
	}
	if b.Quotas.Check(trash) != nil {
		return trashEntry{}, nil // nothing is limited there
	}
	project, _, err := b.Quotas.ProjectOf(fd)
	if err != nil || project < firstProject || project > lastProject {
		return trashEntry{}, err
	}
	return trashEntry{project: project}, nil
}
