// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestMetadataAreKept(t *testing.T) {
	inBubble(t, func(h *keeperHost) {
		h.see(3, false)
		h.pass(textSettle)
		object := h.wantData("generation 3", "")
		for key, want := range map[string]string{
			v1alpha1.AnnotationVGUUID: keptVG, v1alpha1.AnnotationGeneration: "3", v1alpha1.AnnotationGroupKept: "here", v1alpha1.AnnotationCopiedAt: time.Now().UTC().Format(time.RFC3339),
		} {
			if object.Annotations[key] != want {
				h.Errorf("annotation %s is %q, not %q", key, object.Annotations[key], want)
			}
		}
		if object.Labels[v1alpha1.LabelNode] != "n1" || object.Labels[v1alpha1.LabelPool] != "fast" || len(object.OwnerReferences) > 0 {
			h.Errorf("got labels %v, owners %v", object.Labels, object.OwnerReferences)
		}
		writes := h.count()
		for range 100 {
			h.see(3, false)
			h.pass(10 * time.Minute)
		}
		h.start()
		h.see(3, false)
		h.pass(10 * time.Hour)
		if n := h.count() - writes; n > 0 || h.group.texts.Load() > 30 || len(h.files(copyOfGroup)) != 1 {
			h.Errorf("%d writes and %d reads in 27 hours while nothing changed", n, h.group.texts.Load())
		}
		// Somebody else changes the group, and nobody tells of it.
		h.group.change(func(g *keptGroup) { g.generation = 4 })
		h.pass(textEvery + 2*time.Minute)
		h.wantData("generation 4", "")
	})
}

// A group that changes all the time is copied once a minute, and soon after the last change.
func TestMetadataOfABusyGroup(t *testing.T) {
	inBubble(t, func(h *keeperHost) {
		for n := range uint64(600) {
			h.see(n+1, false)
			h.pass(time.Second)
			if n == 90 && h.count() == 0 {
				h.Error("nothing was copied in a minute and a half of changes")
			}
		}
		if n := h.count(); n > 11 {
			h.Errorf("%d writes in ten minutes", n)
		}
		h.pass(textLeast + textSettle)
		h.wantData("generation 600", "")
		if files := h.files(copyOfGroup); len(files) != copiesKept {
			h.Errorf("on the node are %q", files)
		}
	})
}

// A process that begins does not dump anew what the one before has dumped.
func TestMetadataAfterARestart(t *testing.T) {
	inBubble(t, func(h *keeperHost) {
		h.see(3, true)
		h.pass(2 * time.Minute)
		for range 10 {
			h.start()
			h.see(3, true)
			h.pass(time.Minute)
		}
		if h.group.dumps.Load() != 1 || h.group.texts.Load() != 1 {
			h.Errorf("%d dumps and %d texts", h.group.dumps.Load(), h.group.texts.Load())
		}
		if err := h.api.Delete(h.Context(), h.object()); err != nil {
			h.Fatal(err)
		}
		h.pass(publishEvery + time.Minute)
		h.wantData("generation 3", "<superblock/>\n")
	})
}

func TestMetadataWhileTheAPIIsAway(t *testing.T) {
	inBubble(t, func(h *keeperHost) {
		h.apiErr = errors.New("away")
		h.see(3, true)
		h.pass(time.Hour)
		if len(h.files(copyOfGroup)) != 1 || len(h.files(copyOfThin)) == 0 {
			h.Error("the node has no copies")
		}
		h.wantKept(`api="0" group="1" thin="1"`)
		h.mu.Lock()
		h.apiErr = nil
		h.mu.Unlock()
		h.pass(2 * metadataRetry)
		h.wantData("generation 3", "<superblock/>\n")
		h.wantKept(`api="1" group="1" thin="1"`)
		h.news.expect(h.T)
	})
}

func TestMetadataThatAreTooLarge(t *testing.T) {
	inBubble(t, func(h *keeperHost) {
		noise := make([]byte, mostWithDumpBytes)
		random := rand.NewChaCha8([32]byte{1})
		_, _ = random.Read(noise) // it never fails
		h.group.change(func(g *keptGroup) { g.dump = noise })
		h.see(3, true)
		h.pass(2 * time.Minute)
		object := h.wantData("generation 3", "")
		if at := object.Annotations[v1alpha1.AnnotationThinKept]; !strings.HasPrefix(at, "/var/lib/berth/volume-group-metadata/"+keptVG+"/thin-pool-") || !strings.HasSuffix(at, "-generation-3-transaction-7.xml.gz") {
			h.Errorf("the dump is said to be at %q", at)
		}
		h.news.expect(h.T)
		text := bytes.Repeat(noise, 1)
		for len(text) <= mostObjectBytes {
			more := make([]byte, mostWithDumpBytes)
			_, _ = random.Read(more) // it never fails
			text = append(text, more...)
		}
		h.group.change(func(g *keptGroup) {
			g.text = func(uint64) []byte { return text }
			g.dump = []byte("<superblock/>\n")
		})
		h.see(4, true)
		h.pass(15 * time.Minute)
		object = h.wantData("", "<superblock/>\n")
		at := object.Annotations[v1alpha1.AnnotationGroupKept]
		data, err := os.ReadFile(filepath.Join(h.dir, keptVG, filepath.Base(at)))
		if err != nil || unzip(h.T, data) != string(text) {
			h.Errorf("%s is not on the node: %v", at, err)
		}
		h.news.expect(h.T, "Warning MetadataNotKept of *v1alpha1.Pool: the metadata of the volume group have ")
		h.wantKept(`api="0" group="1" thin="1"`)
	})
}

func TestMetadataAreForgotten(t *testing.T) {
	inBubble(t, func(h *keeperHost) {
		h.see(3, true)
		h.pass(2 * time.Minute)
		// A pool of the same name has another volume group now: the copies of the one before
		// stay.
		const another = "aaaaaa-j1r6-1Wmt-yAZB-ql0L-BljM-4Fz7B2"
		h.keeper.Seen("fast", "fast-n1", h.group, another, 3, false)
		h.pass(2 * time.Minute)
		h.wantData("generation 3", "<superblock/>\n")
		for range 2 {
			if err := h.keeper.Forget(h.Context(), "fast", another); err != nil {
				h.Fatal(err)
			}
		}
		h.wantData("generation 3", "<superblock/>\n")
		var all corev1.ConfigMapList
		if err := h.api.List(h.Context(), &all); err != nil || len(all.Items) != 1 {
			h.Errorf("%d ConfigMaps, %v", len(all.Items), err)
		}
		if entries, err := os.ReadDir(h.dir); err != nil || len(entries) != 1 || entries[0].Name() != keptVG {
			h.Errorf("on the node are %v, %v", entries, err)
		}
	})
}

// Stop waits for a dump that is under way, which gives back what it holds.
func TestMetadataStop(t *testing.T) {
	inBubble(t, func(h *keeperHost) {
		h.group.dumpTakes = 5 * time.Minute
		h.see(3, true)
		h.pass(time.Minute)
		if h.group.mu.TryLock() {
			h.Fatal("no dump is under way")
		}
		h.keeper.Stop("fast")
		if !h.group.mu.TryLock() {
			h.Fatal("the dump goes on")
		}
		h.group.mu.Unlock()
		if held, err := (metadataFiles{filepath.Join(h.dir, keptVG)}).held(); held || err != nil {
			h.Errorf("something is held: %v, %v", held, err)
		}
	})
}

func TestMetadataOfAPoolThatCannotBeUsed(t *testing.T) {
	inBubble(t, func(h *keeperHost) {
		h.group.textErr, h.group.dumpErr = volume.ErrPoolUnavailable, volume.ErrPoolUnavailable
		h.see(3, true)
		h.pass(time.Hour)
		if h.group.texts.Load() > 7 || h.group.dumps.Load() > 7 {
			h.Errorf("%d and %d attempts in an hour", h.group.texts.Load(), h.group.dumps.Load())
		}
		h.news.expect(h.T) // the pool itself says it
		h.group.change(func(g *keptGroup) { g.textErr, g.dumpErr = nil, nil })
		h.pass(unavailableRetry + 2*time.Minute)
		h.wantData("generation 3", "<superblock/>\n")
	})
}
