// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-dev/berth/pkg/hostexec"
)

// checkTimeout bounds e2fsck: a large filesystem with errors takes hours.
const checkTimeout = 12 * time.Hour

// Check makes sure that a filesystem that is not mounted may be mounted, and
// repairs what can be repaired without a decision.
//
// Most calls run no program. xfs has no check at mount time: the kernel replays
// its log, and xfs_repair is a person's decision (fsck.xfs(8)); the same holds for
// btrfs and its btrfs check (fsck.btrfs(8)). ext4 that needs
// only its journal replayed is left to the kernel too. Only when the superblock
// says that ext4 has errors, or was not unmounted and has no journal, e2fsck -p
// runs; never -y, which takes decisions that lose data.
//
// e2fsck outlives the caller's deadline, because a check that is killed and begun
// anew with each request never ends; the caller keeps the volume locked meanwhile.
//
// ErrDamaged: e2fsck found what it does not repair by itself.
// volume.ErrToolMissing: e2fsck is needed and not installed.
func (m *Mounter) Check(ctx context.Context, device string, s Superblock) error {
	if s.FSType != Ext4 || !s.HasErrors {
		return nil
	}
	_, err := m.host.Run(context.WithoutCancel(ctx), hostexec.Command{
		Name: "e2fsck", Args: []string{"-p", device}, Timeout: checkTimeout,
	})
	// e2fsck(8): 1 is "errors corrected", 2 "corrected, reboot", which is meant for a
	// mounted root; 4 is "errors left uncorrected".
	var exit *hostexec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && (exit.ExitCode == 1 || exit.ExitCode == 2):
		return nil
	case errors.As(err, &exit) && exit.ExitCode > 0 && exit.ExitCode&4 != 0:
		return fmt.Errorf("check %s: %w: e2fsck leaves errors that need a decision; run e2fsck -f %s on the host: %w", device, ErrDamaged, device, err)
	}
	return fmt.Errorf("check %s: %w", device, err)
}
