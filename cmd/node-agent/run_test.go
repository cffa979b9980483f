// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/berth-dev/berth/internal/agent"
	"github.com/berth-dev/berth/internal/metrics/metricstest"
)

func TestOneAgentPerNode(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	log := slog.New(slog.DiscardHandler)
	release, err := lockNode(t.Context(), dir, log)
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		release, err := lockNode(t.Context(), dir, log)
		if err == nil {
			err = release()
		}
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("a second agent did not wait: %v", err)
	case <-time.After(2 * lockPoll):
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Errorf("the second agent did not get its turn: %v", err)
	}

	release, err = lockNode(t.Context(), dir, log)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lockNode(stopped, dir, log); err == nil {
		t.Error("waits on after it was told to end")
	}
}

// A node's kubelet reports every few seconds; each report must not make the agent read
// all its disks.
func TestReportsOfKubeletDoNotCount(t *testing.T) {
	t.Parallel()
	node := func(uid, version string) *metav1.PartialObjectMetadata {
		m := agent.NodeMetadata()
		m.UID, m.ResourceVersion = types.UID(uid), version
		return m
	}
	kicked := 0
	h := kicks(func() { kicked++ }, isAnotherOne)
	for _, step := range []struct {
		what string
		do   func()
		want int
	}{
		{"added", func() { h.OnAdd(node("a", "1"), true) }, 1},
		{"reported", func() { h.OnUpdate(node("a", "1"), node("a", "2")) }, 1},
		{"made again", func() { h.OnUpdate(node("a", "2"), node("b", "3")) }, 2},
		{"deleted", func() { h.OnDelete(node("b", "3")) }, 3},
	} {
		if step.do(); kicked != step.want {
			t.Errorf("after the Node was %s: %d kicks, want %d", step.what, kicked, step.want)
		}
	}
}

func TestMachineID(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "machine-id")
	for content, ok := range map[string]bool{
		"0123456789abcdef0123456789abcdef\n": true, "": false, "uninitialized\n": false, "0123456789ABCDEF0123456789ABCDEF": false,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if id, err := readMachineID(path); (err == nil) != ok {
			t.Errorf("%q: %q, %v", content, id, err)
		}
	}
	if _, err := readMachineID(path + "x"); err == nil {
		t.Error("a missing file was taken for an identity")
	}
}

// The queues of controllers are controller-runtime's; docs/reference/metrics.md has what the
// alerts ask of them.
func TestMetricsOfQueues(t *testing.T) {
	queue := workqueue.NewTypedRateLimitingQueueWithConfig(workqueue.DefaultTypedControllerRateLimiter[string](), workqueue.TypedRateLimitingQueueConfig[string]{Name: "test"})
	queue.Add("a")
	queue.Get()
	queue.Done("a")
	queue.ShutDown()
	metricstest.CheckSeries(t, metrics.Registry, "workqueue_depth", "workqueue_queue_duration_seconds", "workqueue_longest_running_processor_seconds")
}

// TestServesKubeletWhileTheAPIServerIsAway starts the whole agent with nobody behind
// the API server's address.
func TestServesKubeletWhileTheAPIServerIsAway(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: the agent looks at the host's disks")
	}
	dir, err := os.MkdirTemp("/tmp", "agent") // short: paths of sockets are
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	address := freeAddress(t)
	o, err := parseOptions([]string{
		"--host-root=/", "--state-dir=" + dir + "/state", "--csi-socket=" + dir + "/csi.sock", "--registration-dir=" + dir,
		"--kubelet-plugin-dir=" + dir, "--http-address=" + address,
	}, podEnv)
	if err != nil {
		t.Fatal(err)
	}
	recorder := metricstest.NewRecorder()
	restore := metrics.Registry
	metrics.Registry = recorder
	t.Cleanup(func() { metrics.Registry = restore })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- runWith(ctx, &rest.Config{Host: "http://" + freeAddress(t)}, o, slog.New(slog.DiscardHandler))
	}()

	eventually(t, func() bool { return get(t, address, "/healthz") == http.StatusOK })
	csi := dial(t, dir+"/csi.sock")
	eventually(t, func() bool {
		info, err := csispec.NewNodeClient(csi).NodeGetInfo(ctx, &csispec.NodeGetInfoRequest{})
		return err == nil && info.GetNodeId() == "n1" && info.GetAccessibleTopology().GetSegments()["topology.berth.dev/node"] == "n1"
	})
	plugin := registration.NewRegistrationClient(dial(t, dir+"/berth.dev-reg.sock"))
	eventually(t, func() bool {
		info, err := plugin.GetInfo(ctx, &registration.InfoRequest{})
		return err == nil && info.GetName() == "berth.dev" && info.GetEndpoint() == dir+"/csi.sock"
	})
	if code := get(t, address, "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz says %d before anything was read", code)
	}
	if code := get(t, address, "/metrics"); code != http.StatusOK {
		t.Errorf("/metrics says %d", code)
	}
	recorder.Check(t, "berth_block_devices", "berth_disk_healthy", "berth_disk_wiped_bytes", "berth_pool_ready", "berth_pool_metadata_kept", "berth_left_overs", "berth_left_over_disks",
		"berth_snapshot_room_used_ratio", "berth_volume_unhealthy", "berth_host_command_duration_seconds", "berth_csi_call_duration_seconds",
		"berth_ledger_damaged_entries")

	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(2 * stopGrace):
		t.Fatal("does not end")
	}
	for _, socket := range []string{"csi.sock", "berth.dev-reg.sock"} {
		if _, err := os.Lstat(filepath.Join(dir, socket)); err == nil {
			t.Errorf("left %s behind", socket)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func get(t *testing.T, address, path string) int {
	t.Helper()
	resp, err := http.Get("http://" + address + path)
	if err != nil {
		if !strings.Contains(err.Error(), "refused") {
			t.Log(err)
		}
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	tick := time.Tick(20 * time.Millisecond)
	for deadline := time.Now().Add(time.Minute); !f(); <-tick {
		if time.Now().After(deadline) {
			t.Fatal("not within a minute")
		}
	}
}
