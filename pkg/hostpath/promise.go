// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/berth-dev/berth/pkg/volume"
)

// promise is what a volume was promised. It makes the volume exist.
type promise struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	SizeBytes int64     `json:"sizeBytes"`
	Created   time.Time `json:"created"`
}

const promiseSuffix = ".json"

func promiseFile(id string) string { return promiseDir + "/" + id + promiseSuffix }
func volumeDir(id string) string   { return volumesDir + "/" + id }

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
	if p.ID != id || p.SizeBytes <= 0 {
		return promise{}, fmt.Errorf("read %s: it is the promise of %q over %d bytes: %w", promiseFile(id), p.ID, p.SizeBytes, volume.ErrIdentity)
	}
	return p, nil
}

// readPromises returns all of them, or an error.
func readPromises(root *os.Root) ([]promise, error) {
	names, err := readNames(root, promiseDir)
	if err != nil {
		return nil, err
	}
	var out []promise
	for _, name := range names {
		id, ok := strings.CutSuffix(name, promiseSuffix)
		if !ok || volume.ValidateID(id) != nil {
			continue // a file that was not renamed into place
		}
		p, err := readPromise(root, id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted since the names were read
		}
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}
