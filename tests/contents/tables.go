// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"errors"
	"os"
	"os/exec"
	"strings"
)

// tables are partition tables.
func tables() []Sample {
	return []Sample{
		{Name: "GPT", Type: "gpt", write: partition("label: gpt\n,64M\n,\n")},
		{Name: "GPT, empty", Type: "gpt", write: partition("label: gpt\n")},
		{Name: "GPT, only the backup is left", write: backupOnly},
		{Name: "MBR", Type: "dos", write: partition("label: dos\n,64M\n,\n")},
	}
}

func partition(script string) func(path string) error {
	return func(path string) error {
		cmd := exec.Command("sfdisk", "--no-reread", "--no-tell-kernel", "--quiet", path)
		cmd.Stdin = strings.NewReader(script)
		return run(cmd)
	}
}

// backupOnly is a disk whose start was overwritten: the header and the entries in the
// last 33 sectors are all that is left.
func backupOnly(path string) (err error) {
	if err := partition("label: gpt\n,64M\n,\n")(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.WriteAt(make([]byte, 1<<20), 0); err != nil {
		return err
	}
	return f.Sync()
}
