// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"time"

	"github.com/berth-dev/berth/pkg/volume"
)

// promise is what a volume was promised. It makes the volume exist.
type promise struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	SizeBytes int64  `json:"sizeBytes"`
	// Project is what the filesystem counts the volume's files by, and limits them to
	// SizeBytes; 0 where it limits nothing.
	Project uint32    `json:"project,omitempty"`
	Created time.Time `json:"created"`
	// RetainSeconds is how long what the volume held is kept after it was deleted; 0 not at
	// all.
	RetainSeconds int64 `json:"retainSeconds,omitempty"`
	// Claim is the namespace and the name of the claim that the volume was made for, with a
	// slash between them.
	Claim string `json:"claim,omitempty"`
	// Path is where the volume lies below namedDir; empty where it lies at its ID.
	Path string `json:"path,omitempty"`
	// AdoptedFrom is the path on the host from which the directory was moved here with what is
	// in it; empty for one that was made here.
	AdoptedFrom string `json:"adoptedFrom,omitempty"`
	// Identity of the directory at Path, or of the one that was adopted: what is there under
	// that name may be another one. Of one at Path it is empty as long as nobody but us could
	// open it.
	Identity string `json:"identity,omitempty"`

	// moved: it has another project than is written down.
	moved bool
}

func promiseFile(id string) string { return promiseDir + "/" + id + recordSuffix }
func volumeDir(id string) string   { return volumesDir + "/" + id }

// dir is where the volume lies in the root.
func (p promise) dir() string {
	if p.Path != "" {
		return namedDir + "/" + p.Path
	}
	return volumeDir(p.ID)
}

// parent is the directory in which dir is a name.
func (p promise) parent() (parent, name string) { return path.Dir(p.dir()), path.Base(p.dir()) }

// readPromise returns what the volume was promised, fs.ErrNotExist when it was
// promised nothing.
func readPromise(root *os.Root, id string) (promise, error) {
	data, err := root.ReadFile(promiseFile(id))
	if err != nil {
		return promise{}, err
	}
	var p promise
	if err := json.Unmarshal(data, &p); err != nil {
		return promise{}, fmt.Errorf("read %s: %w", promiseFile(id), err)
	}
	if p.ID != id || p.SizeBytes <= 0 || p.RetainSeconds < 0 || p.Path != "" && ValidatePath(p.Path) != nil ||
		p.AdoptedFrom != "" && (p.Path != "" || p.Identity == "") {
		return promise{}, fmt.Errorf("read %s: it is the promise of %q over %d bytes: %w", promiseFile(id), p.ID, p.SizeBytes, volume.ErrIdentity)
	}
	return p, nil
}

// newPromises returns a reader of the promises under a root.
func newPromises() *records[promise] {
	return newRecords(promiseDir, func(id string) bool { return volume.ValidateID(id) == nil }, readPromise)
}
