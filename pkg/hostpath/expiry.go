// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

// tendRetained moves into the trash what has been kept for long enough, and forgets what is
// not there any more. next is when to look again, 0 for never. What fails is left, and the
// rest goes on.
func (b *Backend) tendRetained(ctx context.Context) (next time.Duration, err error) {
	root, err := b.open(ctx)
	if err != nil {
		return 0, err
	}
	defer closeRoot(root)
	all, err := b.allRetained(root)
	if err != nil {
		return 0, err
	}
	counted, err := b.counted(root)
	if err != nil {
		return 0, err
	}
	failed := []error{b.dropUnfinished(root)}
	waiting, changed := 0, false
	for _, r := range all {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		left, err := b.tend(root, r.Entry, counted)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s, of volume %s: %w", path.Join(b.Root, r.dir(), r.Entry), r.Volume.Name, err))
			left = clockInterval
		}
		if left <= 0 {
			changed = true
			continue
		}
		if r.TakenBack == nil {
			waiting++
		}
		if left = min(left, clockInterval); next == 0 || left < next {
			next = left
		}
	}
	if waiting > 0 && b.clock.isDue(counted) {
		failed = append(failed, b.writeClock(root, counted))
	}
	if changed {
		b.Trash.Observer.RetainedChanged(b.Root)
	}
	return next, errors.Join(failed...)
}

// tend looks at one thing that is kept and returns for how long it is to be left alone, 0
// when it is gone. Deletions and whoever takes something back wait for no more than that.
func (b *Backend) tend(root *os.Root, entry string, counted time.Duration) (left time.Duration, err error) {
	b.retaining.Lock()
	defer b.retaining.Unlock()
	r, err := readRetained(root, entry) // it may have been taken back meanwhile
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	where, err := b.whereIs(root, r)
	switch {
	case err != nil:
		return 0, err
	case where == "":
		// Its deletion was killed before it was moved, and moves it anew; or it has gone
		// into the trash; or whoever took it back has removed it.
		return 0, b.forgetRetained(root, r)
	case r.TakenBack != nil:
		return clockInterval, b.finishTakingBack(root, r)
	}
	if left := time.Duration(r.DueSeconds)*time.Second - counted; left > 0 {
		return left, nil
	}
	if err := b.requireUnused(path.Join(retainedDir, r.Entry)); err != nil {
		return 0, err
	}
	if err := b.unlimit(root, retainedDir, r.Entry, r.Volume); err != nil {
		return 0, fmt.Errorf("give up the limit of project %d: %w", r.Volume.Project, err)
	}
	if err := b.step("expire"); err != nil {
		return 0, err
	}
	if err := b.move(root, retainedDir, r.Entry, trashDir, r.Entry); err != nil {
		return 0, err
	}
	b.Log.Info("A deleted volume was kept for long enough", "root", b.Root, "volume", r.Volume.Name, "claim", r.Volume.Claim, "entry", r.Entry)
	return 0, b.forgetRetained(root, r)
}

func (b *Backend) forgetRetained(root *os.Root, r retained) error {
	if err := b.step("forget what was kept"); err != nil {
		return err
	}
	if err := root.Remove(retainedFile(r.Entry)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := b.step("sync what is kept"); err != nil {
		return err
	}
	return syncDir(root, retainedRecordDir)
}

// dropUnfinished removes records that killed calls have not renamed into place.
func (b *Backend) dropUnfinished(root *os.Root) error {
	b.retaining.Lock()
	defer b.retaining.Unlock()
	names, err := readNames(root, retainedRecordDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if entry, ok := strings.CutSuffix(name, recordSuffix+tmpSuffix); !ok || !isEntry(entry) {
			continue
		}
		if err := b.step("drop an unfinished record"); err != nil {
			return err
		}
		if err := root.Remove(path.Join(retainedRecordDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// saveClock writes the root's clock down when its process ends, if anything goes by it.
func (b *Backend) saveClock(ctx context.Context) error {
	root, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer closeRoot(root)
	all, err := b.allRetained(root)
	if err != nil || len(all) == 0 {
		return err
	}
	counted, err := b.counted(root)
	if err != nil {
		return err
	}
	return b.writeClock(root, counted)
}

func (b *Backend) writeClock(root *os.Root, counted time.Duration) error {
	if err := b.step("write clock"); err != nil {
		return err
	}
	return b.clock.write(root, counted)
}
