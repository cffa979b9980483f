// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/berth-dev/berth/pkg/volume"
)

// adopting are the directories that are being adopted. Who is about to move one that lies in another
// would move it out of what is a volume by then. The zero value is ready to use.
type adopting struct {
	mu   sync.Mutex
	dirs map[string]bool
}

// enter notes a directory until leave is called. ErrNotAdoptable and ErrInUse: one that it lies in, or
// that lies in it, is being adopted.
func (a *adopting) enter(dir string) (leave func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for other := range a.dirs {
		if overlap(dir, other) {
			return nil, fmt.Errorf("%w: %s is being adopted: %w", volume.ErrNotAdoptable, other, volume.ErrInUse)
		}
	}
	if a.dirs == nil {
		a.dirs = map[string]bool{}
	}
	a.dirs[dir] = true
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.dirs, dir)
	}, nil
}

// requireApart returns ErrNotAdoptable for a directory of which a part is a volume already, so that it is
// not what its owner thinks it is, or of which another volume has been promised a directory above.
func (b *Backend) requireApart(root *os.Root, p promise) error {
	all, err := b.promises.all(root)
	if err != nil {
		return fmt.Errorf("look for what was adopted: %w", err)
	}
	for _, other := range all {
		if other.ID == p.ID || other.AdoptedFrom == "" || !overlap(p.AdoptedFrom, other.AdoptedFrom) {
			continue
		}
		switch err := requireDir(root, other); {
		case errors.Is(err, volume.ErrNotFound):
			return fmt.Errorf("%w: %s was promised to volume %s, which is not made yet", volume.ErrNotAdoptable, other.AdoptedFrom, other.Name)
		case err != nil:
			return err
		case other.AdoptedFrom != p.AdoptedFrom && beneath(p.AdoptedFrom, other.AdoptedFrom):
			return fmt.Errorf("%w: %s, which was a part of it, is volume %s now; when it is to be one without that, rename it first, or delete that volume", volume.ErrNotAdoptable, other.AdoptedFrom, other.Name)
		}
	}
	return nil
}
