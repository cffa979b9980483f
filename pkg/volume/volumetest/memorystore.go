// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berth-dev/berth/pkg/volume"
)

func (m *Memory) capacity() volume.Capacity {
	c := volume.Capacity{TotalBytes: m.opts.TotalBytes, Volumes: len(m.volumes)}
	for _, v := range m.volumes {
		c.AllocatedBytes += v.record.SizeBytes
	}
	c.FreeBytes = max(0, c.TotalBytes-c.AllocatedBytes)
	c.MaxVolumeBytes = c.FreeBytes
	return c
}

func (m *Memory) find(id string, rec *volume.Record) (*memoryVolume, error) {
	v := m.volumes[id]
	switch {
	case v == nil:
		return nil, fmt.Errorf("volume %s: %w", id, volume.ErrNotFound)
	case rec != nil && !rec.SameStorage(v.record), v.tampered:
		return nil, fmt.Errorf("volume %s: %w", id, volume.ErrIdentity)
	case v.store == "":
		return nil, fmt.Errorf("the storage of volume %s: %w", id, volume.ErrNotFound)
	}
	return v, nil
}

func (m *Memory) add(spec volume.Spec) (*memoryVolume, error) {
	if c := m.capacity(); !c.Fits(spec.SizeBytes) {
		return nil, fmt.Errorf("%w: %d bytes were asked for, %d are free", volume.ErrNoSpace, spec.SizeBytes, c.FreeBytes)
	}
	m.made++
	v := &memoryVolume{name: spec.Name, claim: spec.Claim, record: volume.Record{Mode: m.opts.Mode, SizeBytes: spec.SizeBytes}}
	unique := fmt.Sprintf("%s-%d", spec.ID, m.made)
	switch m.opts.Mode {
	case volume.ModeLVM:
		v.record.LVM = &volume.LVMRecord{VGName: "memory", VGUUID: "memory-vg", LVName: spec.ID, LVUUID: unique}
	case volume.ModeDevice:
		v.record.Device = &volume.DeviceRecord{
			Name: fmt.Sprintf("bd-%d", m.made), IdentityScheme: "serial", IdentityValue: unique, SizeBytes: spec.SizeBytes,
		}
	case volume.ModeHostpath:
		v.record.Hostpath = &volume.HostpathRecord{Root: m.opts.Dir, Directory: filepath.Join("volumes", unique), RootID: memoryRootID}
		v.store = filepath.Join(m.opts.Dir, v.record.Hostpath.Directory)
		if err := os.MkdirAll(v.store, 0o750); err != nil {
			return nil, err
		}
		m.volumes[spec.ID] = v
		return v, nil
	default:
		return nil, fmt.Errorf("mode %q: %w", m.opts.Mode, volume.ErrInvalid)
	}
	v.store = filepath.Join(m.opts.Dir, "store", unique)
	if err := os.MkdirAll(filepath.Dir(v.store), 0o700); err != nil {
		return nil, err
	}
	var content []byte
	if m.opts.Remains {
		content = mark("an earlier owner")
	}
	if err := os.WriteFile(v.store, content, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(v.store, spec.SizeBytes); err != nil {
		return nil, err
	}
	m.volumes[spec.ID] = v
	return v, nil
}

func (m *Memory) resize(v *memoryVolume, sizeBytes int64) error {
	by := sizeBytes - v.record.SizeBytes
	if by <= 0 {
		return nil
	}
	if c := m.capacity(); !c.Fits(by) {
		return fmt.Errorf("%w: %d more bytes were asked for, %d are free", volume.ErrNoSpace, by, c.FreeBytes)
	}
	if m.opts.Mode != volume.ModeHostpath {
		if err := os.Truncate(v.store, sizeBytes); err != nil {
			return err
		}
	}
	v.record.SizeBytes = sizeBytes
	return nil
}

// locate makes the volume reachable under this boot's name.
func (m *Memory) locate(id string, v *memoryVolume) (volume.Location, error) {
	if m.opts.Mode == volume.ModeHostpath {
		return volume.Location{Directory: v.store, SizeBytes: v.record.SizeBytes}, nil
	}
	device := filepath.Join(m.opts.Dir, fmt.Sprintf("boot%d", m.boots), id)
	if err := os.MkdirAll(filepath.Dir(device), 0o700); err != nil {
		return volume.Location{}, err
	}
	if have, err := os.Readlink(device); err != nil || have != v.store {
		if err := os.Remove(device); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return volume.Location{}, err
		}
		if err := os.Symlink(v.store, device); err != nil {
			return volume.Location{}, err
		}
	}
	return volume.Location{Device: device, SizeBytes: v.record.SizeBytes}, nil
}

// erase removes a volume's bytes, and nothing outside of the backend's directory.
func (m *Memory) erase(store string) error {
	root, err := os.OpenRoot(m.opts.Dir)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(m.opts.Dir, store)
	if err == nil {
		err = root.RemoveAll(rel)
	}
	return errors.Join(err, root.Close())
}
