// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// Delete implements volume.Backend. It returns when the directory is in the trash
// and the promise is gone; what the volume held is removed in the background by
// Run. The wipe policy changes nothing; see the package's documentation.
func (b *Backend) Delete(ctx context.Context, id string, rec *volume.Record, _ volume.WipePolicy) error {
	root, _, err := b.find(ctx, id, rec)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	defer closeRoot(root)
	if err := b.discard(root, id); err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	b.Kick()
	return nil
}

func (b *Backend) discard(root *os.Root, id string) error {
	err := requireDir(root, id)
	switch {
	case err == nil:
		if err := b.moveToTrash(root, id); err != nil {
			return err
		}
	case !errors.Is(err, volume.ErrNotFound): // else it is in the trash, or was never made
		return err
	}
	if err := b.step("remove promise"); err != nil {
		return err
	}
	if err := b.dropTmp(root, promiseFile(id)); err != nil {
		return err
	}
	if err := root.Remove(promiseFile(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := b.step("sync promises"); err != nil {
		return err
	}
	return syncDir(root, promiseDir)
}

func (b *Backend) moveToTrash(root *os.Root, id string) error {
	dir := path.Join(b.Root, volumeDir(id))
	used, err := b.InUse(dir)
	if err != nil {
		return fmt.Errorf("look whether %s is in use: %w", dir, err)
	}
	if used {
		return fmt.Errorf("%s is mounted: %w", dir, volume.ErrInUse)
	}
	if err := b.step("move to trash"); err != nil {
		return err
	}
	err = root.Rename(volumeDir(id), path.Join(trashDir, trashName(id)))
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s: %w: %w", dir, volume.ErrInUse, err)
	}
	if err != nil {
		return err
	}
	if err := b.step("sync trash"); err != nil {
		return err
	}
	// The new name first: between the two the directory has both, never none.
	return errors.Join(syncDir(root, trashDir), syncDir(root, volumesDir))
}

// trashName is unique: an ID may be used, and deleted, more than once.
func trashName(id string) string {
	return id + "." + strings.ToLower(rand.Text()[:13])
}
