// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/berth-dev/berth/pkg/volume"
)

// Create implements volume.Backend. It takes the smallest disk that fits.
//
// A disk is claimed only while it is open exclusively and locked, and after it
// has proven, so held, to be the disk that was meant and blank. So there is no
// claim of a volume on a disk that was not blank, and a claim that is found after
// a crash is as good as a fresh one, whatever is on the disk by then: it is the
// volume's own. The lock is held over the registry's write on purpose; nobody but
// a second claimant of the same disk waits for it.
func (b *Backend) Create(ctx context.Context, spec volume.Spec) (volume.Record, error) {
	if err := spec.ValidateEmpty(); err != nil {
		return volume.Record{}, fmt.Errorf("create volume: %w", err)
	}
	held, err := b.held(ctx, spec.ID, nil)
	switch {
	case err == nil:
		now, err := b.resolve(ctx, spec.ID, held)
		if err != nil {
			return volume.Record{}, fmt.Errorf("create volume %s: %w", spec.Name, err)
		}
		if now.SizeBytes < spec.SizeBytes {
			return volume.Record{}, fmt.Errorf("create volume %s: %w", spec.Name, cannotGrow(now, spec.SizeBytes))
		}
		return record(now), nil
	case !errors.Is(err, volume.ErrNotFound):
		return volume.Record{}, fmt.Errorf("create volume %s: %w", spec.Name, err)
	}
	claimed, err := b.claimOne(ctx, spec)
	if err != nil {
		return volume.Record{}, fmt.Errorf("create volume %s: %w", spec.Name, err)
	}
	return record(claimed), nil
}

// claimOne claims the first candidate, in the order of choice, that stands the
// proof.
func (b *Backend) claimOne(ctx context.Context, spec volume.Spec) (Claimed, error) {
	for {
		ended := b.taking.ended()
		candidates, err := b.registry.Candidates(ctx)
		if err != nil {
			return Claimed{}, fmt.Errorf("list the usable disks: %w", err)
		}
		load, err := b.load(ctx, candidates)
		if err != nil {
			return Claimed{}, err
		}
		chosen := choose(candidates, spec, load)
		var passed []string // why the others were not taken
		var unknown []error // what could not be found out
		takenByUs := false  // another call is at one of them
		for _, disk := range chosen {
			if !b.taking.try(disk.Name) {
				takenByUs = true
				continue
			}
			claimed, err := b.take(ctx, disk, spec)
			b.taking.end(disk.Name)
			if err == nil {
				return claimed, nil
			}
			b.log.Warn("disk passed over", "volume", spec.Name, "disk", disk.Name, "path", disk.Path, "error", err)
			switch {
			case errors.Is(err, errClaimUnknown), ctx.Err() != nil:
				return Claimed{}, err
			case isReason(err):
				passed = append(passed, fmt.Sprintf("%s: %v", disk.Name, err))
			default:
				unknown = append(unknown, fmt.Errorf("disk %s: %w", disk.Name, err))
			}
		}
		switch {
		case takenByUs:
			// That call may yet leave its disk to us.
			select {
			case <-ended:
			case <-ctx.Done():
				return Claimed{}, ctx.Err()
			}
		case len(unknown) > 0:
			return Claimed{}, errors.Join(unknown...)
		default:
			return Claimed{}, noSpace(spec, candidates, passed)
		}
	}
}

// errClaimUnknown marks a claim of which nobody knows whether it stands. Another
// disk must not be tried then.
var errClaimUnknown = errors.New("the outcome of the claim is unknown")

// take proves that the candidate is the disk that was meant and blank, and claims
// it. Every error but errClaimUnknown promises that the volume does not hold the
// disk.
func (b *Backend) take(ctx context.Context, candidate volume.Disk, spec volume.Spec) (_ Claimed, err error) {
	disk, err := b.disks.Open(ctx, candidate.Path)
	if errors.Is(err, volume.ErrBusy) {
		// Somebody looks at it with the lock held: no fact about the disk.
		return Claimed{}, fmt.Errorf("open it: %s", err.Error())
	}
	if err != nil {
		return Claimed{}, err
	}
	defer func() {
		if closeErr := disk.Close(); closeErr != nil {
			b.log.Warn("close disk", "disk", candidate.Name, "error", closeErr)
		}
	}()
	now, err := b.registry.Resolve(ctx, candidate.Name)
	if err != nil {
		return Claimed{}, err
	}
	if now.State != StateUnclaimed {
		return Claimed{}, fmt.Errorf("it is %s: %w", now.State, volume.ErrBusy)
	}
	if err := sameDisk(disk, now); err != nil {
		return Claimed{}, err
	}
	if now.SizeBytes < spec.SizeBytes {
		return Claimed{}, fmt.Errorf("it has %d bytes now, %d are needed: %w", now.SizeBytes, spec.SizeBytes, volume.ErrIdentity)
	}
	if err := disk.Blank(); err != nil {
		return Claimed{}, err
	}

	claimed, err := b.registry.Claim(ctx, now.Name, Owner{UID: spec.ID, Name: spec.Name, Kind: OwnerVolume})
	switch {
	case err == nil:
	case errors.Is(err, volume.ErrBusy), errors.Is(err, volume.ErrNotFound), errors.Is(err, volume.ErrInvalid):
		return Claimed{}, err
	default:
		return Claimed{}, fmt.Errorf("claim disk %s: %w: %w", now.Name, errClaimUnknown, err)
	}
	if !record(claimed).SameStorage(record(now)) {
		// What was claimed is not what was proven; nothing was written to it.
		if err := b.registry.Abandon(ctx, claimed.Name, spec.ID); err != nil {
			return Claimed{}, fmt.Errorf("abandon disk %s: %w: %w", claimed.Name, errClaimUnknown, err)
		}
		return Claimed{}, fmt.Errorf("it says %s %s of itself, the registry %s %s: %w", now.IdentityScheme, now.IdentityValue,
			claimed.IdentityScheme, claimed.IdentityValue, volume.ErrIdentity)
	}
	return claimed, nil
}

// sameDisk proves that the open disk is the one that was resolved.
func sameDisk(disk OpenDisk, now Claimed) error {
	same, err := disk.Is(now.Path)
	if err != nil {
		return err
	}
	if !same {
		return fmt.Errorf("it is %s now, which is another device than the one opened: %w", now.Path, volume.ErrIdentity)
	}
	size, err := disk.SizeBytes()
	if err != nil {
		return err
	}
	if size != now.SizeBytes {
		return fmt.Errorf("the open device has %d bytes, disk %s has %d: %w", size, now.Name, now.SizeBytes, volume.ErrIdentity)
	}
	return nil
}

// isReason reports whether the error is a fact about the disk, for which it is
// passed over, and not a failure to find out.
func isReason(err error) bool {
	for _, reason := range []error{volume.ErrBusy, volume.ErrInUse, volume.ErrNotBlank, volume.ErrIdentity, volume.ErrNotFound, volume.ErrInvalid} {
		if errors.Is(err, reason) {
			return true
		}
	}
	return false
}

// usable narrows the candidates by the selector. Without one, disks that nothing
// but their place tells apart are left out; a selector decides on them itself.
func usable(candidates []volume.Disk, selectDisk func(volume.Disk) bool) []volume.Disk {
	var out []volume.Disk
	for _, d := range candidates {
		if selectDisk == nil && !d.Weak || selectDisk != nil && selectDisk(d) {
			out = append(out, d)
		}
	}
	return out
}

// load is how many disks behind each controller somebody holds, where there is a
// choice of controllers.
func (b *Backend) load(ctx context.Context, candidates []volume.Disk) (map[string]int, error) {
	if !slices.ContainsFunc(candidates, func(d volume.Disk) bool { return d.Controller != candidates[0].Controller }) {
		return nil, nil
	}
	claims, err := b.registry.Claims(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the claimed disks: %w", err)
	}
	load := map[string]int{}
	for _, held := range claims {
		load[held.Controller]++
	}
	load[""] = 0 // not one controller but several that are not known
	return load, nil
}

// choose returns the candidates that fit, the smallest first. Of equal ones that
// comes first of whose controller fewer disks are held, so that volumes do not share
// one's bandwidth and fate while another is idle. Then the volume's ID decides, so that
// volumes that are made at once spread over them, and a repeated call tries the same.
func choose(candidates []volume.Disk, spec volume.Spec, load map[string]int) []volume.Disk {
	var out []volume.Disk
	for _, d := range usable(candidates, spec.SelectDisk) {
		if d.SizeBytes >= spec.SizeBytes {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b volume.Disk) int {
		return cmp.Or(
			cmp.Compare(a.SizeBytes, b.SizeBytes),
			cmp.Compare(load[a.Controller], load[b.Controller]),
			cmp.Compare(rank(spec.ID, a.Name), rank(spec.ID, b.Name)),
			cmp.Compare(a.Name, b.Name),
		)
	})
	return out
}

func rank(id, diskName string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id + "\x00" + diskName))
	return h.Sum64()
}

// noSpace says why none of the candidates became the volume.
func noSpace(spec volume.Spec, candidates []volume.Disk, passed []string) error {
	selected := usable(candidates, spec.SelectDisk)
	var largest int64
	for _, d := range selected {
		largest = max(largest, d.SizeBytes)
	}
	switch {
	case len(passed) > 0:
		return fmt.Errorf("%w: no free disk of at least %d bytes can be used (%s)", volume.ErrNoSpace, spec.SizeBytes, strings.Join(passed, "; "))
	case len(candidates) == 0:
		return fmt.Errorf("%w: this node has no free disk; kubectl get blockdevices -o wide says why each is not usable", volume.ErrNoSpace)
	case len(selected) == 0:
		return fmt.Errorf("%w: none of the %d free disks of this node matches the device selector", volume.ErrNoSpace, len(candidates))
	}
	return fmt.Errorf("%w: %d bytes were asked for, the largest of %d free disks that match has %d", volume.ErrNoSpace, spec.SizeBytes, len(selected), largest)
}
