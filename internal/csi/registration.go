// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// pluginAPIVersion is the version of the registration that kubelet takes for CSI
// drivers (pkg/volume/csi/csi_plugin.go, ValidatePlugin).
const pluginAPIVersion = "1.0.0"

// Registration makes the node service known to kubelet, in place of the sidecar
// node-driver-registrar. Kubelet watches the directory, connects to the socket it
// finds, asks for the driver's name and socket, and tells how it went. It does so
// again whenever it was restarted; when the socket goes it forgets the driver.
type Registration struct {
	registration.UnimplementedRegistrationServer

	// Directory that kubelet watches, as this process sees it
	// (/var/lib/kubelet/plugins_registry on most hosts).
	Directory string
	// DriverName is the name of the CSI driver.
	DriverName string
	// Endpoint is the path of the CSI socket as kubelet sees it.
	Endpoint string
	Log      *slog.Logger

	mu    sync.Mutex
	state error // nil: registered
	heard bool
}

var errNotAsked = errors.New("kubelet has not registered the driver yet")

// Start offers the registration until ctx ends, then removes the socket, so that
// kubelet forgets the driver. Serve the CSI socket first: kubelet calls it at once.
func (r *Registration) Start(ctx context.Context) error {
	listener, err := listen(ctx, filepath.Join(r.Directory, r.DriverName+"-reg.sock"))
	if err != nil {
		return fmt.Errorf("register with kubelet: %w", err)
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, r)
	return serve(ctx, server, listener)
}

// NeedLeaderElection is false: every node registers its own service.
func (r *Registration) NeedLeaderElection() bool { return false }

// Registered returns nil once kubelet has confirmed the driver, and otherwise says
// what is missing. It is meant for the readiness check.
func (r *Registration) Registered() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.heard {
		return errNotAsked
	}
	return r.state
}

// GetInfo tells kubelet which driver this is and where it listens.
func (r *Registration) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              r.DriverName,
		Endpoint:          r.Endpoint,
		SupportedVersions: []string{pluginAPIVersion},
	}, nil
}

// NotifyRegistrationStatus is told how the registration went. When it failed
// kubelet tries again by itself.
func (r *Registration) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard, r.state = true, nil
	if s.GetPluginRegistered() {
		r.Log.Info("kubelet registered the driver", "driver", r.DriverName)
	} else {
		r.state = fmt.Errorf("kubelet refused the driver %s: %s", r.DriverName, s.GetError())
		r.Log.Error("kubelet refused the driver", "driver", r.DriverName, "error", s.GetError())
	}
	return &registration.RegistrationStatusResponse{}, nil
}
