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
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
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
