// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/berth-dev/berth/internal/durable"
	"github.com/berth-dev/berth/pkg/lvm"
)

// Generations is an lvm.Journal: a directory of the node with a file for each volume
// group. Its zero value cannot be used.
type Generations struct{ dir string }

var _ lvm.Journal = Generations{}

// OpenGenerations makes the directory if need be, and removes what writes that never
// ended have left there. Only one process may have it open.
func OpenGenerations(dir string) (Generations, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Generations{}, err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return Generations{}, err
	}
	for _, f := range files {
		if durable.IsTemporary(f.Name()) {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return Generations{}, err
			}
		}
	}
	return Generations{dir: dir}, nil
}

const generationVersion = 1

type generationFile struct {
	SchemaVersion int `json:"schemaVersion"`
	lvm.Generation
}

// groupFile is a UUID of lvm, which is safe as a file's name.
var groupFile = regexp.MustCompile(`^[a-zA-Z0-9]+(-[a-zA-Z0-9]+)+$`)

func (d Generations) path(groupUUID string) (string, error) {
	if !groupFile.MatchString(groupUUID) {
		return "", fmt.Errorf("%q is not the UUID of a volume group", groupUUID)
	}
	return filepath.Join(d.dir, groupUUID+".json"), nil
}

// Keep implements lvm.Journal.
func (d Generations) Keep(g lvm.Generation) error {
	path, err := d.path(g.GroupUUID)
	if err != nil {
		return err
	}
	data, err := json.Marshal(generationFile{SchemaVersion: generationVersion, Generation: g})
	if err != nil {
		return fmt.Errorf("keep generation %d of volume group %s: %w", g.Seqno, g.GroupUUID, err)
	}
	if err := durable.WriteFile(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep generation %d of volume group %s: %w", g.Seqno, g.GroupUUID, err)
	}
	return nil
}

// Kept implements lvm.Journal. A file that is damaged is an error that names it.
func (d Generations) Kept(groupUUID string) (lvm.Generation, bool, error) {
	path, err := d.path(groupUUID)
	if err != nil {
		return lvm.Generation{}, false, err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return lvm.Generation{}, false, nil
	}
	if err != nil {
		return lvm.Generation{}, false, err
	}
	var file generationFile
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	err = dec.Decode(&file)
	switch {
	case err != nil:
	case file.SchemaVersion != generationVersion:
		err = fmt.Errorf("schemaVersion %d: this Berth understands %d", file.SchemaVersion, generationVersion)
	case file.GroupUUID != groupUUID:
		err = fmt.Errorf("it is of volume group %q", file.GroupUUID)
	}
	if err != nil {
		return lvm.Generation{}, false, fmt.Errorf("the record %s is damaged: %w", path, err)
	}
	return file.Generation, true, nil
}

// Forget removes what is kept of a volume group that is gone. It returns nil when there
// was nothing.
func (d Generations) Forget(groupUUID string) error {
	path, err := d.path(groupUUID)
	if err != nil {
		return err
	}
	if err := durable.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget volume group %s: %w", groupUUID, err)
	}
	return nil
}
