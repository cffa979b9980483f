// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volume

import "fmt"

// ValidateID returns ErrInvalid unless the ID is a lower-case UUID. Backends make
// names on disk of it, so nothing else may pass: no separator, no dot, no case
// that a filesystem could fold.
func ValidateID(id string) error {
	if len(id) != 36 {
		return fmt.Errorf("%w: volume ID %q is not a lower-case UUID", ErrInvalid, id)
	}
	for i := range len(id) {
		c := id[i]
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fmt.Errorf("%w: volume ID %q is not a lower-case UUID", ErrInvalid, id)
		}
	}
	return nil
}

// Validate returns ErrInvalid for a wish that no backend can meet.
//
// It is for backends whose volumes can be copies; see ValidateEmpty.
func (s Spec) Validate() error {
	if err := ValidateID(s.ID); err != nil {
		return err
	}
	if s.SizeBytes <= 0 {
		return fmt.Errorf("%w: volume %s: a size of %d bytes was asked for, it must be larger than 0", ErrInvalid, s.Name, s.SizeBytes)
	}
	switch s.Access {
	case AccessFilesystem, AccessBlock:
		return nil
	}
	return fmt.Errorf("%w: volume %s: access %q is unknown (Filesystem, Block)", ErrInvalid, s.Name, s.Access)
}

// ValidateEmpty is Validate for a backend that makes empty volumes only.
func (s Spec) ValidateEmpty() error {
	if s.Source != nil {
		return fmt.Errorf("%w: volume %s: here are no snapshots and no copies, so it cannot begin as a copy of %s", ErrInvalid, s.Name, s.Source.ID)
	}
	return s.Validate()
}
