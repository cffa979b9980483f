// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volume_test

import (
	"errors"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

func TestValidateID(t *testing.T) {
	t.Parallel()
	for id, ok := range map[string]bool{
		"0f9a4c8e-6d1b-4a53-9e0f-2b7c1d3e5f60":  true,
		"":                                      false,
		"..":                                    false,
		"0F9A4C8E-6d1b-4a53-9e0f-2b7c1d3e5f60":  false,
		"0f9a4c8e-6d1b-4a53-9e0f-2b7c1d3e5f6":   false,
		"0f9a4c8e-6d1b-4a53-9e0f-2b7c1d3e5f600": false,
		"0f9a4c8e/6d1b-4a53-9e0f-2b7c1d3e5f60":  false,
		"0f9a4c8e-6d1b-4a53-9e0f-2b7c1d3e5/..":  false,
		"0f9a4c8e-6d1b-4a53-9e0f-2b7c1d3e5f6\n": false,
	} {
		err := volume.ValidateID(id)
		if ok && err != nil {
			t.Errorf("ValidateID(%q) = %v, want nil", id, err)
		}
		if !ok && !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("ValidateID(%q) = %v, want ErrInvalid", id, err)
		}
	}
}

func TestSpecValidate(t *testing.T) {
	t.Parallel()
	good := volume.Spec{ID: "0f9a4c8e-6d1b-4a53-9e0f-2b7c1d3e5f60", Name: "pvc-1", SizeBytes: 1, Access: volume.AccessBlock}
	if err := good.Validate(); err != nil {
		t.Fatalf("Validate: %v", err)
	}
	for name, change := range map[string]func(*volume.Spec){
		"no ID":         func(s *volume.Spec) { s.ID = "" },
		"size 0":        func(s *volume.Spec) { s.SizeBytes = 0 },
		"negative size": func(s *volume.Spec) { s.SizeBytes = -1 },
		"no access":     func(s *volume.Spec) { s.Access = "" },
		"odd access":    func(s *volume.Spec) { s.Access = "block" },
	} {
		s := good
		change(&s)
		if err := s.Validate(); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%s: Validate = %v, want ErrInvalid", name, err)
		}
	}
}
