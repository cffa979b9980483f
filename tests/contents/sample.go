// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
)

// SizeBytes is how large a disk for a sample has to be: as large as the most demanding
// tool wants it, and larger than both of its ends that Berth reads.
const SizeBytes = 320 << 20

// Sample is one kind of content.
type Sample struct {
	Name string
	// Type is what libblkid calls it, as TYPE or PTTYPE; "" when libblkid does not know
	// it, as it does not know everything that is somebody's.
	Type string
	// write makes it on a zeroed file or block device of SizeBytes.
	write func(path string) error
}

// Write makes the sample on a file or block device of SizeBytes that holds only zeroes.
func (s Sample) Write(path string) error {
	if err := s.write(path); err != nil {
		return fmt.Errorf("make a sample of %s: %w", s.Name, err)
	}
	return nil
}

// All returns a sample of every kind.
func All() []Sample {
	var all []Sample
	for _, some := range [][]Sample{filesystems(), members(), arrays(), encrypted(), tables(), unknown()} {
		all = append(all, some...)
	}
	return all
}

// piece is a part of a format: what stands where. A negative offset counts from the end.
type piece struct {
	offset int64
	data   []byte
}

// bytesAt makes a sample of pieces.
func bytesAt(pieces ...piece) func(path string) error {
	return func(path string) (err error) {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		for _, p := range pieces {
			offset := p.offset
			if offset < 0 {
				offset += SizeBytes
			}
			if _, err := f.WriteAt(p.data, offset); err != nil {
				return err
			}
		}
		return f.Sync()
	}
}

// tool makes a sample by a program, which is given the path last.
func tool(name string, args ...string) func(path string) error {
	return func(path string) error { return run(exec.Command(name, append(args, path)...)) }
}

func run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return nil
}

// unknown is content without any signature: nothing but the rule that only zeroes are
// blank keeps it.
func unknown() []Sample {
	// The same in each run, and no bytes of which a signature could come by chance.
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 64<<10)
	for i := range noise {
		noise[i] = byte(random.IntN(256))
	}
	return []Sample{
		{Name: "random data at the start", write: bytesAt(piece{0, noise})},
		{Name: "random data at the end", write: bytesAt(piece{int64(-len(noise)), noise})},
		{Name: "one byte in the middle of the first MiB", write: bytesAt(piece{512 << 10, []byte{1}})},
		{Name: "one byte at the very end", write: bytesAt(piece{-1, []byte{1}})},
		{Name: "ones", write: bytesAt(piece{0, filled(0xff, 4096)})},
	}
}

func filled(value byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = value
	}
	return b
}
