// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"fmt"
	"time"

	"github.com/berth-dev/berth/pkg/volume"
)

// lockPatience is how long a request waits for another operation on its volume.
// Most of them are short, and kubelet waits half a second and more before it asks
// again; a long one, such as a check of the filesystem, is answered with ABORTED.
const lockPatience = 3 * time.Second

// hold takes the lock of a volume. volume.ErrBusy, which becomes ABORTED, when
// somebody else keeps it.
func hold(ctx context.Context, locks Locks, volumeID string) (unlock func(), err error) {
	waitCtx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	unlock, err = locks.Lock(waitCtx, volumeID)
	switch {
	case err == nil:
		return unlock, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("%w: another operation on volume %s is under way", volume.ErrBusy, volumeID)
}
