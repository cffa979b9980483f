// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"errors"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// Of two directories of which one lies in the other, one is adopted, whichever is asked for first, and
// also while the other one is at it.
func TestAdoptNested(t *testing.T) {
	t.Parallel()
	refused := func(t *testing.T, what string, err error, says string) {
		t.Helper()
		if !errors.Is(err, volume.ErrNotAdoptable) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want ErrNotAdoptable that says %q", what, err, says)
		}
	}
	for name, outerFirst := range map[string]bool{"the outer first": true, "the inner first": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t)
			outer := handed(t, p)
			inner := path.Join(outer, "a/b")
			first, second := outer, inner
			if !outerFirst {
				first, second = inner, outer
			}
			asked := 0
			p.holder = func(dir string) {
				if dir == first {
					asked++
					_, err := adopt(t, p, 2, second, mib)
					refused(t, "at once", err, first+" is being adopted")
				}
			}
			rec, err := adopt(t, p, 1, first, mib)
			must(t, err)
			if asked == 0 {
				t.Fatal("nothing was asked for meanwhile")
			}
			p.holder = nil
			says := "no such directory"
			if !outerFirst {
				says = "is volume " + spec(1, mib).Name + " now"
			}
			_, err = adopt(t, p, 2, second, mib)
			refused(t, "afterwards", err, says)
			p.restart(t)
			_, err = adopt(t, p, 2, second, mib)
			refused(t, "after a restart", err, says)
			must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeNone))
			if !outerFirst {
				_, err = adopt(t, p, 2, second, mib)
				must(t, err)
			}
		})
	}
}

// A directory that was promised before the agent was killed is the other one's, too.
func TestAdoptNestedInWhatIsPromised(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	dir := handed(t, p)
	for n := 0; ; n++ {
		dead := p.crashAt(t, n)
		_, err := adopt(t, p, 1, dir, mib)
		died := dead()
		p.restart(t)
		if !died {
			t.Fatalf("it was never promised and not moved: %v", err)
		}
		if _, err := os.Lstat(path.Join(p.root, ".berth/volumes", volumetest.ID(1)+".json")); err == nil {
			break
		}
	}
	if _, err := adopt(t, p, 2, path.Join(dir, "a"), mib); !errors.Is(err, volume.ErrNotAdoptable) || !strings.Contains(err.Error(), "was promised to volume") {
		t.Errorf("Adopt of a part = %v, want ErrNotAdoptable", err)
	}
	_, err := adopt(t, p, 1, dir, mib)
	must(t, err)
}
