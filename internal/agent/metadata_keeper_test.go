// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/metrics/metricstest"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

const keptVG = "BdzGhu-j1r6-1Wmt-yAZB-ql0L-BljM-4Fz7B2"

// keptGroup is a volume group whose metadata are copied.
type keptGroup struct {
	mu         sync.Mutex
	generation uint64
	text       func(generation uint64) []byte
	textErr    error
	dump       []byte
	dumpErr    error
	dumpTakes  time.Duration
	held       bool

	texts, dumps, releases atomic.Int64
}

func (g *keptGroup) Text(context.Context) (lvm.GroupText, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.texts.Add(1)
	if g.textErr != nil {
		return lvm.GroupText{}, g.textErr
	}
	return lvm.GroupText{GroupName: "berth-fast", GroupUUID: keptVG, Seqno: g.generation, Text: g.text(g.generation)}, nil
}

func (g *keptGroup) DumpThinPool(ctx context.Context, holding func() error, out io.Writer) (lvm.ThinDump, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dumps.Add(1)
	if g.held {
		return lvm.ThinDump{}, volume.ErrBusy
	}
	if err := holding(); err != nil {
		return lvm.ThinDump{}, err
	}
	if g.dumpTakes > 0 {
		select {
		case <-time.After(g.dumpTakes):
		case <-ctx.Done():
			return lvm.ThinDump{}, ctx.Err()
		}
	}
	if errors.Is(g.dumpErr, lvm.ErrStillHeld) {
		g.held = true
	}
	if g.dumpErr != nil {
		return lvm.ThinDump{}, g.dumpErr
	}
	_, err := out.Write(g.dump)
	return lvm.ThinDump{Seqno: g.generation, TransactionID: 7}, err
}

func (g *keptGroup) ReleaseThinPool(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.releases.Add(1)
	g.held = false
	return nil
}

func (g *keptGroup) change(of func(g *keptGroup)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	of(g)
}

// keeperHost is a node with a keeper, within a bubble of time.
type keeperHost struct {
	*testing.T

	api    client.Client
	dir    string
	news   *newspaper
	group  *keptGroup
	keeper *MetadataKeeper
	stop   context.CancelFunc

	mu     sync.Mutex
	writes int
	apiErr error
}

func newKeeperHost(t *testing.T, dir string) *keeperHost {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	h := &keeperHost{T: t, dir: dir, news: &newspaper{}, group: &keptGroup{
		generation: 1, dump: []byte("<superblock/>\n"),
		text: func(n uint64) []byte { return []byte("generation " + strconv.FormatUint(n, 10)) },
	}}
	write := func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.apiErr == nil {
			h.writes++
		}
		return h.apiErr
	}
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "fast-n1", UID: "pool-uid"}}
	h.api = fake.NewClientBuilder().WithScheme(scheme).WithObjects(pool).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if err := write(); err != nil {
				return err
			}
			return c.Create(ctx, o, opts...)
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			if err := write(); err != nil {
				return err
			}
			return c.Patch(ctx, o, p, opts...)
		},
	}).Build()
	h.start()
	return h
}

// start begins a keeper as a new process does.
func (h *keeperHost) start() {
	if h.stop != nil {
		h.stop()
		synctest.Wait()
	}
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	h.keeper = NewMetadataKeeper(ctx, MetadataOptions{
		Client: h.api, Live: h.api, Namespace: "berth-system", NodeName: "n1", Directory: h.dir, HostDirectory: "/var/lib/berth/volume-group-metadata",
		Recorder: h.news, Log: slog.New(slog.DiscardHandler),
	})
}

// see changes the group to a generation, and tells the keeper.
func (h *keeperHost) see(generation uint64, thin bool) {
	h.group.change(func(g *keptGroup) { g.generation = generation })
	h.keeper.Seen("fast", "fast-n1", h.group, keptVG, generation, thin)
}

// pass lets time pass.
func (h *keeperHost) pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // it is how the bubble's clock moves on
	synctest.Wait()
}

func (h *keeperHost) object() *corev1.ConfigMap {
	h.Helper()
	object := &corev1.ConfigMap{}
	if err := h.api.Get(h.Context(), client.ObjectKey{Namespace: "berth-system", Name: metadataObjectName("n1", "fast", keptVG)}, object); err != nil {
		h.Fatal(err)
	}
	return object
}

// wantData fails the test unless the ConfigMap holds these, compressed; "" is none.
func (h *keeperHost) wantData(group, thin string) *corev1.ConfigMap {
	h.Helper()
	object := h.object()
	for key, want := range map[string]string{keyGroup: group, keyThin: thin} {
		if got := unzip(h.T, object.BinaryData[key]); got != want {
			h.Errorf("%s is %.80q, not %.80q", key, got, want)
		}
	}
	return object
}

// wantKept fails the test unless berth_pool_metadata_kept says this of each copy.
func (h *keeperHost) wantKept(want string) {
	h.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(h.keeper)
	families, err := registry.Gather()
	if err != nil {
		h.Fatal(err)
	}
	var got []string
	for _, family := range families {
		for _, m := range family.GetMetric() {
			got = append(got, fmt.Sprintf("%s=%q", m.GetLabel()[0].GetValue(), strconv.Itoa(int(m.GetGauge().GetValue()))))
		}
	}
	if strings.Join(got, " ") != want {
		h.Errorf("kept are %s, not %s", got, want)
	}
	metricstest.CheckSeries(h.T, registry, "berth_pool_metadata_kept")
}

func unzip(t *testing.T, data []byte) string {
	t.Helper()
	if len(data) == 0 {
		return ""
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return string(plain)
}

func (h *keeperHost) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.writes
}

func (h *keeperHost) files(kind copyKind) []string {
	h.Helper()
	found, err := filepath.Glob(filepath.Join(h.dir, keptVG, string(kind)+"-*"))
	if err != nil {
		h.Fatal(err)
	}
	return found
}

func inBubble(t *testing.T, f func(h *keeperHost)) {
	t.Helper()
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := newKeeperHost(t, dir)
		defer func() { h.stop(); synctest.Wait() }()
		f(h)
	})
}

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

func TestMetadataFileNames(t *testing.T) {
	t.Parallel()
	f := metadataFile{kind: copyOfThin, at: time.Date(2026, 11, 27, 6, 30, 1, 0, time.UTC), generation: 12, transactionID: 7}
	f.name = f.fileName()
	if got, ok := parseMetadataFile(f.name); !ok || got != f || f.name != "thin-pool-20261127T063001Z-generation-12-transaction-7.xml.gz" {
		t.Errorf("%q is %+v, %v", f.name, got, ok)
	}
	for _, name := range []string{"", heldMarker, "thin-pool.part", "volume-group-20261127T063001Z-generation-12.xml.gz", "volume-group-20261399T063001Z-generation-12.vg.gz", "volume-group-20261127T063001Z-generation-012.vg.gz"} {
		if got, ok := parseMetadataFile(name); ok {
			t.Errorf("%q is %+v", name, got)
		}
	}
}

// copiesAskedFor notes what a pool's reconciler asks of the copies.
type copiesAskedFor struct {
	asked []string
	err   error
}

func (c *copiesAskedFor) Seen(poolSet, poolName string, _ MetadataSource, groupUUID string, _ uint64, _ bool) {
	if ask := "see " + poolSet + " " + poolName + " " + groupUUID; len(c.asked) == 0 || c.asked[len(c.asked)-1] != ask {
		c.asked = append(c.asked, ask)
	}
}

func (c *copiesAskedFor) Stop(poolSet string) { c.asked = append(c.asked, "stop "+poolSet) }

func (c *copiesAskedFor) Forget(_ context.Context, poolSet, groupUUID string) error {
	if c.err == nil {
		c.asked = append(c.asked, "forget "+poolSet+" "+groupUUID)
	}
	return c.err
}

// The copies go when the volume group was removed on purpose, and not before; the Pool waits
// for that.
func TestCopiesGoWithTheGroup(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a")
	copies := &copiesAskedFor{err: errors.New("the API server is away")}
	h.pools.Metadata = copies
	h.apply(poolSet())
	h.settle()
	uuid := h.pool().Status.VGUUID
	seen := "see fast fast-n1 " + uuid
	if !slices.Equal(copies.asked, []string{seen}) {
		t.Errorf("asked for %q", copies.asked)
	}
	// The PoolSet's deletion deletes nothing.
	if err := h.api.Delete(t.Context(), &v1alpha1.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: "fast"}}); err != nil {
		t.Fatal(err)
	}
	h.settle()
	if !slices.Equal(copies.asked, []string{seen}) {
		t.Errorf("asked for %q", copies.asked)
	}
	if err := h.api.Delete(t.Context(), h.pool()); err != nil {
		t.Fatal(err)
	}
	if err := h.reconcile(); err == nil || !errors.Is(err, copies.err) {
		t.Errorf("got %v", err)
	}
	if len(h.groups) > 0 || len(h.pool().Finalizers) == 0 {
		t.Errorf("the group is %v, the finalizers %v", h.groups, h.pool().Finalizers)
	}
	copies.err = nil
	h.settle()
	if last := copies.asked[len(copies.asked)-1]; last != "forget fast "+uuid || slices.Contains(copies.asked[:len(copies.asked)-1], last) || copies.asked[1] != "stop fast" {
		t.Errorf("asked for %q", copies.asked)
	}
	if err := h.api.Get(t.Context(), client.ObjectKey{Name: "fast-n1"}, &v1alpha1.Pool{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Pool is still there: %v", err)
	}
}

func TestCopiesOfAnAdoptedGroup(t *testing.T) {
	t.Parallel()
	h := newAdoptingHost(t)
	copies := &copiesAskedFor{}
	h.pools.Metadata = copies
	h.apply(poolSet(adoptingSet))
	h.settle()
	h.wantAdopted()
	if want := []string{"see fast fast-n1 " + adoptedUUID}; !slices.Equal(copies.asked, want) {
		t.Errorf("asked for %q, not %q", copies.asked, want)
	}
}
