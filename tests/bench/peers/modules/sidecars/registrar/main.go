// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command registrar tells kubelet of a CSI driver on its node, and stays to be
// asked again. It does what the node-driver-registrar of the Kubernetes project
// does, of which no version could be had as a Go module to pin.
//
// The protocol is kubelet's plugin registration (k8s.io/kubelet,
// pkg/apis/pluginregistration/v1): kubelet finds the socket in its folder of
// plugins, asks whose it is, and says what came of it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// plugin answers kubelet.
type plugin struct {
	registration.UnimplementedRegistrationServer
	name string
	// endpoint is the driver's socket as kubelet sees it.
	endpoint string
	// refused gets kubelet's reason if it does not take the driver.
	refused chan<- error
}

// GetInfo says whose socket it is.
func (p *plugin) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: p.name, Endpoint: p.endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus hears what came of it.
func (p *plugin) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if status.GetPluginRegistered() {
		slog.Info("kubelet has registered the driver", "driver", p.name)
	} else {
		select {
		case p.refused <- fmt.Errorf("kubelet did not register %s: %s", p.name, status.GetError()):
		default:
		}
	}
	return &registration.RegistrationStatusResponse{}, nil
}

func main() {
	driver := flag.String("csi-address", "/csi/csi.sock", "the driver's socket, as this process sees it")
	endpoint := flag.String("kubelet-registration-path", "", "the driver's socket, as kubelet sees it (needed)")
	folder := flag.String("registration-dir", "/registration", "kubelet's plugins_registry, as this process sees it")
	flag.Parse()
	if *endpoint == "" {
		fmt.Fprintln(os.Stderr, "registrar: --kubelet-registration-path is needed")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *driver, *endpoint, *folder)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "registrar:", err)
		os.Exit(1)
	}
}

// run serves kubelet until ctx ends or kubelet refuses the driver.
func run(ctx context.Context, driver, endpoint, folder string) error {
	name, err := awaitName(ctx, driver)
	if err != nil {
		return err
	}
	socket := filepath.Join(folder, name+"-reg.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove what an earlier registrar left: %w", err)
	}
	listener, err := net.Listen("unix", socket) // closing it removes the file
	if err != nil {
		return fmt.Errorf("listen for kubelet: %w", err)
	}
	refused := make(chan error, 1)
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, &plugin{name: name, endpoint: endpoint, refused: refused})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	slog.Info("waiting for kubelet", "socket", socket)
	select {
	case <-ctx.Done():
	case err = <-refused:
	case err = <-served:
	}
	server.GracefulStop()
	return err
}

// awaitName waits for the driver to come up and asks for its name.
func awaitName(ctx context.Context, address string) (string, error) {
	connection, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", fmt.Errorf("connect to the driver: %w", err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	info, err := csi.NewIdentityClient(connection).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return "", fmt.Errorf("ask the driver for its name: %w", err)
	}
	return info.GetName(), nil
}
