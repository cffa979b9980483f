// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi_test

import (
	"context"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/pkg/volume"
)

// scripted answers one call as a test says.
type scripted struct {
	csispec.UnimplementedNodeServer
	stage func(context.Context) error
}

func (s *scripted) NodeStageVolume(ctx context.Context, _ *csispec.NodeStageVolumeRequest) (*csispec.NodeStageVolumeResponse, error) {
	return &csispec.NodeStageVolumeResponse{}, s.stage(ctx)
}

type calls struct {
	mu   sync.Mutex
	seen []string
}

func (c *calls) CallDone(method string, code codes.Code, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d > 0 {
		c.seen = append(c.seen, method+" "+code.String())
	}
}

func (c *calls) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.seen, ", ")
}

func TestServer(t *testing.T) {
	t.Parallel()
	socket := socketPath(t)
	// What a killed process leaves behind: a socket that nobody serves.
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}

	log, logged := debugLog()
	observed := &calls{}
	node := &scripted{}
	stop := start(t, &csi.Server{
		Socket: socket, Identity: &csi.Identity{Name: "berth.dev", Version: "v1"}, Node: node, Log: log, Observer: observed,
	}, socket)
	conn := dial(t, socket)
	identity, client := csispec.NewIdentityClient(conn), csispec.NewNodeClient(conn)

	info, err := identity.GetPluginInfo(t.Context(), &csispec.GetPluginInfoRequest{})
	if err != nil || info.GetName() != "berth.dev" || info.GetVendorVersion() != "v1" {
		t.Errorf("got %v, %v", info, err)
	}
	st, err := os.Lstat(socket)
	if err != nil || st.Mode().Type() != fs.ModeSocket || st.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v", st.Mode(), err)
	}
	if probe, err := identity.Probe(t.Context(), &csispec.ProbeRequest{}); err != nil || !probe.GetReady().GetValue() {
		t.Errorf("probe %v, %v", probe, err)
	}

	node.stage = func(context.Context) error { panic("ouch") }
	request := &csispec.NodeStageVolumeRequest{VolumeId: "pvc-1", Secrets: map[string]string{"key": "hunter2"}}
	if _, err := client.NodeStageVolume(t.Context(), request); status.Code(err) != codes.Internal {
		t.Errorf("a panic: got %v", err)
	}
	node.stage = func(context.Context) error { return volume.ErrInUse }
	if _, err := client.NodeStageVolume(t.Context(), request); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("an error of the domain: got %v", err)
	}
	if _, err := client.NodeGetInfo(t.Context(), &csispec.NodeGetInfoRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a call that is not served: got %v", err)
	}
	if got := observed.String(); got != "GetPluginInfo OK, NodeStageVolume Internal, NodeStageVolume FailedPrecondition, NodeGetInfo Unimplemented" {
		t.Errorf("observed %s", got)
	}
	text := logged.String()
	if strings.Contains(text, "hunter2") || strings.Contains(text, "Probe") {
		t.Errorf("a secret or a probe is in the log:\n%s", text)
	}
	for _, want := range []string{"ouch", "volume=pvc-1", "method=NodeStageVolume", "code=FailedPrecondition"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the log:\n%s", want, text)
		}
	}

	// A call under way is answered before the server ends.
	entered, release := make(chan struct{}), make(chan struct{})
	node.stage = func(context.Context) error { close(entered); <-release; return nil }
	answered := make(chan error, 1)
	go func() {
		_, err := client.NodeStageVolume(context.Background(), request)
		answered <- err
	}()
	<-entered
	time.AfterFunc(100*time.Millisecond, func() { close(release) })
	if err := stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
	if err := <-answered; err != nil {
		t.Errorf("the call under way: %v", err)
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket is still there")
	}
}

func TestServerTakesNothingOfOthers(t *testing.T) {
	t.Parallel()
	log, _ := debugLog()
	identity := &csi.Identity{Name: "berth.dev"}
	t.Run("a file", func(t *testing.T) {
		t.Parallel()
		socket := socketPath(t)
		if err := os.WriteFile(socket, []byte("data"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := (&csi.Server{Socket: socket, Identity: identity, Log: log}).Start(t.Context()); err == nil {
			t.Error("started")
		}
		if data, err := os.ReadFile(socket); err != nil || string(data) != "data" {
			t.Errorf("the file reads %q, %v", data, err)
		}
	})
	t.Run("a socket that is served", func(t *testing.T) {
		t.Parallel()
		socket := socketPath(t)
		start(t, &csi.Server{Socket: socket, Identity: identity, Log: log}, socket)
		if err := (&csi.Server{Socket: socket, Identity: identity, Log: log}).Start(t.Context()); err == nil {
			t.Error("started")
		}
		if _, err := csispec.NewIdentityClient(dial(t, socket)).Probe(t.Context(), &csispec.ProbeRequest{}); err != nil {
			t.Errorf("the first server is gone: %v", err)
		}
	})
}

func TestProbe(t *testing.T) {
	t.Parallel()
	i := &csi.Identity{Ready: func(context.Context) (bool, error) { return false, nil }}
	if r, err := i.Probe(t.Context(), nil); err != nil || r.GetReady().GetValue() {
		t.Errorf("got %v, %v", r, err)
	}
	i.Ready = func(context.Context) (bool, error) { return false, volume.ErrToolMissing }
	if r, err := i.Probe(t.Context(), nil); status.Code(csi.ToStatus(err)) != codes.FailedPrecondition {
		t.Errorf("got %v, %v", r, err)
	}
}
