// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"io"
	"testing"
	"time"
)

// TestCopiesOfAWrongClock: copies were made while the clock was a year ahead, or a year
// behind. What is made once it is right is kept, and is the latest.
func TestCopiesOfAWrongClock(t *testing.T) {
	t.Parallel()
	for _, wrong := range []time.Duration{365 * 24 * time.Hour, -365 * 24 * time.Hour} {
		t.Run(wrong.String(), func(t *testing.T) {
			t.Parallel()
			files := metadataFiles{dir: t.TempDir()}
			made := func(generation uint64, at time.Time) {
				t.Helper()
				err := files.add(metadataFile{kind: copyOfGroup, at: at.UTC().Truncate(time.Second), generation: generation}, 1<<20,
					func(w io.Writer) error { _, err := fmt.Fprint(w, generation); return err }, func(*metadataFile) {})
				if err != nil {
					t.Fatal(err)
				}
			}
			want := func(generations ...uint64) {
				t.Helper()
				found, err := files.latest(copyOfGroup)
				if err != nil {
					t.Fatal(err)
				}
				var got []uint64
				for _, f := range found {
					got = append(got, f.generation)
				}
				if fmt.Sprint(got) != fmt.Sprint(generations) {
					t.Fatalf("the copies are of the generations %d, want %d", got, generations)
				}
			}
			now := time.Now()
			for generation := range uint64(copiesKept) {
				made(generation+1, now.Add(wrong+time.Duration(generation)*time.Second))
			}
			made(11, now.Add(-time.Minute))
			want(11, 2)
			made(12, now)
			want(12, 11)
		})
	}
}
