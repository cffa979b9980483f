// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"fmt"
	"path"
	"slices"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

// Matches reports whether a selector chooses a disk. Every field that is set must
// match, a list by one of its entries; nil and the empty selector choose every
// disk of strong identity. Whether the disk is usable is another question. An
// invalid glob is volume.ErrInvalid, with the field's name.
func Matches(sel *v1alpha1.DeviceSelector, bd *v1alpha1.BlockDevice) (bool, error) {
	match, err := SelectDisk(sel)
	if err != nil {
		return false, err
	}
	return match(asDisk(bd)), nil
}

// SelectDisk turns a selector into what volume.Spec takes.
func SelectDisk(sel *v1alpha1.DeviceSelector) (func(volume.Disk) bool, error) {
	if sel == nil {
		return func(d volume.Disk) bool { return !d.Weak }, nil
	}
	for field, globs := range map[string][]string{"serials": sel.Serials, "models": sel.Models, "paths": sel.Paths} {
		for _, glob := range globs {
			if _, err := path.Match(glob, ""); err != nil {
				return nil, fmt.Errorf("deviceSelector.%s: %q is not a valid glob: %w", field, glob, volume.ErrInvalid)
			}
		}
	}
	return func(d volume.Disk) bool {
		return (!d.Weak || sel.AllowWeakIdentity) &&
			(len(sel.Names) == 0 || slices.Contains(sel.Names, d.Name)) &&
			matchesOne(sel.Serials, d.Serial) && matchesOne(sel.Models, d.Model) &&
			matchesOne(sel.Paths, append([]string{d.Path}, d.Links...)...) &&
			(len(sel.Transports) == 0 || slices.Contains(sel.Transports, d.Transport)) &&
			(sel.CryptoErase == nil || *sel.CryptoErase == d.CryptoErase) &&
			(sel.Rotational == nil || *sel.Rotational == d.Rotational) &&
			(sel.MinSize == nil || d.SizeBytes >= sel.MinSize.Value()) &&
			(sel.MaxSize == nil || d.SizeBytes <= sel.MaxSize.Value())
	}, nil
}

// matchesOne reports whether one of the globs matches one of the values, or there
// is no glob.
func matchesOne(globs []string, values ...string) bool {
	return len(globs) == 0 || slices.ContainsFunc(globs, func(glob string) bool {
		return slices.ContainsFunc(values, func(value string) bool {
			ok, _ := path.Match(glob, value)
			return ok
		})
	})
}

// PoolCandidates returns the disks that may be claimed now and that the selector
// chooses, sorted by name. They are copies.
func (inv *Inventory) PoolCandidates(ctx context.Context, sel *v1alpha1.DeviceSelector) ([]v1alpha1.BlockDevice, error) {
	if err := inv.waitReady(ctx); err != nil {
		return nil, err
	}
	match, err := SelectDisk(sel)
	if err != nil {
		return nil, err
	}
	var chosen []v1alpha1.BlockDevice
	for _, bd := range inv.objects() {
		if claimable(bd) && match(asDisk(bd)) {
			chosen = append(chosen, *bd.DeepCopy())
		}
	}
	return chosen, nil
}
