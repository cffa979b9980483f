// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// stopGrace is how long calls that are under way may go on after a stop.
const stopGrace = 10 * time.Second

// Server serves CSI services on a unix socket.
type Server struct {
	// Socket is the path of the unix socket. Its directory must exist.
	Socket string
	// Identity is always needed; Controller and Node where they are served.
	Identity   csi.IdentityServer
	Controller csi.ControllerServer
	Node       csi.NodeServer

	Log      *slog.Logger
	Observer Observer // may be nil
}

// Start serves until ctx ends, then lets the calls under way finish for at most
// ten seconds, and removes the socket. It may be added to a controller-runtime
// manager.
func (s *Server) Start(ctx context.Context) error {
	listener, err := listen(ctx, s.Socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(interceptor(s.Log, s.Observer)))
	csi.RegisterIdentityServer(server, s.Identity)
	if s.Controller != nil {
		csi.RegisterControllerServer(server, s.Controller)
	}
	if s.Node != nil {
		csi.RegisterNodeServer(server, s.Node)
	}
	s.Log.Info("serving CSI", "socket", s.Socket)
	return serve(ctx, server, listener)
}

// NeedLeaderElection is false: kubelet and the sidecars reach this process and no
// other.
func (s *Server) NeedLeaderElection() bool { return false }

// serve runs a gRPC server until ctx ends.
func serve(ctx context.Context, server *grpc.Server, listener net.Listener) error {
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	graceful := make(chan struct{})
	go func() {
		server.GracefulStop()
		close(graceful)
	}()
	timer := time.NewTimer(stopGrace)
	defer timer.Stop()
	select {
	case <-graceful:
	case <-timer.C:
		server.Stop()
	}
	return <-ended
}

// listen makes the socket, for root alone. What is left of an earlier process, a
// socket that nobody serves, is replaced; anything else is not touched.
func listen(ctx context.Context, path string) (net.Listener, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("listen on %s: something that is no socket is there", path)
	default:
		dialer := net.Dialer{Timeout: time.Second}
		if conn, err := dialer.DialContext(ctx, "unix", path); err == nil {
			return nil, errors.Join(fmt.Errorf("listen on %s: another process serves it", path), conn.Close())
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the old socket: %w", err)
		}
	}
	var listener net.Listener
	onOwnThread(func() {
		// The umask belongs to the process unless a thread has one of its own. Without
		// it the socket would be open to everybody for a moment.
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			return
		}
		unix.Umask(0o077)
		listener, err = (&net.ListenConfig{}).Listen(ctx, "unix", path)
	})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", filepath.Dir(path), err)
	}
	return listener, nil
}

// onOwnThread runs f on a thread that ends with it, so that what f does to its
// thread concerns nobody else. The leader of the threads cannot end alone: it is
// held meanwhile, so that f runs on another.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onOwnThread(f)
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}
