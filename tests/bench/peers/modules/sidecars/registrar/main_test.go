// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// driver is a CSI driver that has a name and nothing else.
type driver struct {
	csi.UnimplementedIdentityServer
}

func (driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: "fake.example.com"}, nil
}

// start runs a registrar and, a moment later, its driver. It returns the client
// that kubelet would be.
func start(t *testing.T, ctx context.Context) (registration.RegistrationClient, string, <-chan error) {
	folder := t.TempDir()
	address := filepath.Join(folder, "csi.sock")
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, address, "/seen/by/kubelet.sock", folder) }()

	time.Sleep(100 * time.Millisecond)
	listener, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, driver{})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)

	socket := filepath.Join(folder, "fake.example.com-reg.sock")
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	return registration.NewRegistrationClient(connection), socket, ended
}

func TestKubeletLearnsOfTheDriver(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	kubelet, socket, ended := start(t, ctx)
	info, err := kubelet.GetInfo(ctx, &registration.InfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if info.GetType() != registration.CSIPlugin || info.GetName() != "fake.example.com" || info.GetEndpoint() != "/seen/by/kubelet.sock" {
		t.Errorf("kubelet learns %v", info)
	}
	if _, err := kubelet.NotifyRegistrationStatus(ctx, &registration.RegistrationStatus{PluginRegistered: true}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the registrar ended with %v", err)
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left, so kubelet keeps the driver: %v", err)
	}
}

func TestARefusalEndsIt(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	kubelet, _, ended := start(t, ctx)
	refusal := &registration.RegistrationStatus{Error: "no room"}
	if _, err := kubelet.NotifyRegistrationStatus(ctx, refusal, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("the registrar ended with %v", err)
	}
}
