// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestMetadataOfAThinPool(t *testing.T) {
	inBubble(t, func(h *keeperHost) {
		h.see(3, true)
		h.pass(2 * time.Minute)
		object := h.wantData("generation 3", "<superblock/>\n")
		if object.Annotations[v1alpha1.AnnotationThinTransactionID] != "7" || object.Annotations[v1alpha1.AnnotationThinGeneration] != "3" {
			h.Errorf("got %v", object.Annotations)
		}
		// Volumes are written to: each hour.
		h.group.change(func(g *keptGroup) { g.dump = []byte("<superblock>later</superblock>\n") })
		h.pass(dumpEvery + 2*time.Minute)
		h.wantData("generation 3", "<superblock>later</superblock>\n")
		if h.group.dumps.Load() != 2 {
			h.Errorf("%d dumps", h.group.dumps.Load())
		}
		// Volumes come and go: soon, and not for each.
		for n := range uint64(1200) {
			h.see(4+n, true)
			h.pass(time.Second)
		}
		if h.group.dumps.Load() > 5 || h.group.dumps.Load() < 3 {
			h.Errorf("%d dumps, 2 of them before 20 minutes of changes", h.group.dumps.Load())
		}
		h.pass(dumpLeast + dumpSettle + 2*time.Minute)
		if object := h.object(); object.Annotations[v1alpha1.AnnotationThinGeneration] != "1203" {
			h.Errorf("got %v", object.Annotations)
		}
		if files := h.files(copyOfThin); len(files) != copiesKept {
			h.Errorf("on the node are %q", files)
		}
	})
}

func TestDumpThatFails(t *testing.T) {
	for name, err := range map[string]error{
		"no thin_dump": fmt.Errorf("thin_dump: %w", volume.ErrToolMissing), "killed by its deadline": errors.New("thin_dump was killed after its deadline"),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(h *keeperHost) {
				h.group.dumpErr = err
				for n := range uint64(10) {
					h.see(3+n, true)
					h.pass(time.Hour)
				}
				h.news.expect(h.T, "Warning MetadataNotKept of *v1alpha1.Pool: the thin pool's metadata cannot be dumped")
				if h.group.dumps.Load() > 11 {
					h.Errorf("%d attempts in ten hours", h.group.dumps.Load())
				}
				h.wantData("generation 12", "")
				h.wantKept(`api="1" group="1" thin="0"`)
				h.group.change(func(g *keptGroup) { g.dumpErr = nil })
				h.pass(dumpEvery + 2*time.Minute)
				h.wantData("generation 12", "<superblock/>\n")
				for _, path := range h.files(copyOfThin) {
					if data, err := os.ReadFile(path); err != nil || unzip(h.T, data) != "<superblock/>\n" {
						h.Errorf("half a dump was kept: %s, %v", path, err)
					}
				}
			})
		})
	}
}

// What was held when an agent was killed is given back by the next one, and what somebody
// else holds is not.
func TestHeldMetadataAreGivenBack(t *testing.T) {
	inBubble(t, func(h *keeperHost) {
		h.group.held = true // by somebody else
		h.see(3, true)
		h.pass(20 * time.Minute)
		if h.group.releases.Load() > 0 || h.group.dumps.Load() == 0 {
			h.Errorf("%d dumps; what somebody else holds was released %d times", h.group.dumps.Load(), h.group.releases.Load())
		}
		h.group.change(func(g *keptGroup) { g.held, g.dumpErr = false, lvm.ErrStillHeld })
		h.pass(20 * time.Minute)
		h.group.change(func(g *keptGroup) {
			if !g.held {
				h.Error("nothing is held")
			}
		})
		h.group.change(func(g *keptGroup) { g.dumpErr = nil })
		h.start()
		h.see(3, true)
		h.pass(dumpEvery + 2*time.Minute)
		if h.group.releases.Load() != 1 {
			h.Errorf("released %d times", h.group.releases.Load())
		}
		h.wantData("generation 3", "<superblock/>\n")
	})
}
