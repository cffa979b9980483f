// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package artifact

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"
)

func TestKeyDependsOnEveryInputAndItsLabel(t *testing.T) {
	t.Parallel()
	keys := map[string]string{}
	for name, key := range map[string]*Key{
		"nothing":        NewKey("x"),
		"one":            NewKey("x").Add("a", "1"),
		"other content":  NewKey("x").Add("a", "2"),
		"other label":    NewKey("x").Add("b", "1"),
		"two":            NewKey("x").Add("a", "1").Add("b", "1"),
		"other order":    NewKey("x").Add("b", "1").Add("a", "1"),
		"run together":   NewKey("x").Add("a", "1b\x001\x001"),
		"other artifact": NewKey("y").Add("a", "1"),
	} {
		if other, taken := keys[key.String()]; taken {
			t.Errorf("%q and %q have one key, %s", name, other, key)
		}
		keys[key.String()] = name
	}
	if a, b := NewKey("x").Add("a", "1").String(), NewKey("x").Add("a", "1").String(); a != b {
		t.Errorf("same inputs, different keys: %s and %s", a, b)
	}
}

func TestKeyOfFiles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	key := func() string {
		k := NewKey("x")
		if err := k.AddFile("f", path); err != nil {
			t.Fatal(err)
		}
		return k.String()
	}
	if err := NewKey("x").AddFile("f", path); err == nil {
		t.Error("a missing input was accepted")
	}
	os.WriteFile(path, []byte("1"), 0o644)
	first := key()
	os.WriteFile(path, []byte("2"), 0o644)
	if key() == first {
		t.Error("the key ignores the file's content")
	}
	a, b := NewKey("x"), NewKey("x")
	if err := errors.Join(a.AddFS("t", fstest.MapFS{"d/f": {Data: []byte("1")}}), b.AddFS("t", fstest.MapFS{"d/g": {Data: []byte("1")}})); err != nil {
		t.Fatal(err)
	}
	if a.String() == b.String() {
		t.Error("the key ignores the names in a tree")
	}
}

func TestGetBuildsOnceAndNeverShowsAHalfBuiltProduct(t *testing.T) {
	t.Parallel()
	store := &Store{Dir: filepath.Join(t.TempDir(), "cache")}
	key := NewKey("thing").Add("v", "1")
	boom := errors.New("boom")
	if _, err := store.Get(key, func(dir string) error {
		os.WriteFile(filepath.Join(dir, "half"), nil, 0o644)
		return boom
	}); !errors.Is(err, boom) {
		t.Fatalf("error of the build = %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(store.Dir, "thing-*")); len(left) != 0 {
		t.Fatalf("a failed build left %v", left)
	}
	// What a killed build left must not be taken for a product's content.
	os.MkdirAll(filepath.Join(store.Dir, key.String()+".partial", "rest"), 0o755)
	var builds atomic.Int32
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			dir, err := store.Get(key, func(dir string) error {
				builds.Add(1)
				return os.WriteFile(filepath.Join(dir, "whole"), nil, 0o644)
			})
			if err != nil {
				t.Errorf("get: %v", err)
				return
			}
			if _, err := os.Stat(filepath.Join(dir, "whole")); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(dir, "rest")); err == nil {
				t.Error("the product contains what a killed build left")
			}
		})
	}
	group.Wait()
	if builds.Load() != 1 {
		t.Errorf("built %d times", builds.Load())
	}
}

func TestPruneKeepsTheLastVersionsAndTheRecentOnes(t *testing.T) {
	t.Parallel()
	store := &Store{Dir: t.TempDir()}
	for name, age := range map[string]time.Duration{
		"a-1": 40 * keepFor, "a-2": 30 * keepFor, "a-3": 20 * keepFor, "a-4": 10 * keepFor,
		"b-1": 40 * keepFor,
		"c-1": keepFor / 2, "c-2": keepFor / 3, "c-3": keepFor / 4,
		// Perhaps one that another process builds right now.
		"d-1.partial": 40 * keepFor, "d-2.partial": 40 * keepFor, "d-3.partial": 40 * keepFor,
	} {
		path := filepath.Join(store.Dir, name)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Prune(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(store.Dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, entry := range entries {
		left = append(left, entry.Name())
	}
	if got, want := strings.Join(left, " "), "a-3 a-4 b-1 c-1 c-2 c-3 d-1.partial d-2.partial d-3.partial"; got != want {
		t.Errorf("left %s, want %s", got, want)
	}
}
