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
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
)

// stopGrace is how long calls that are under way may go on after a stop.
const stopGrace = 10 * time.Second

// Server serves CSI services on a unix socket.
type Server struct {
	// Socket is the path of the unix socket. Its directory must exist.
	Socket string
	// Identity is always needed; the others where they are served.
	Identity        csi.IdentityServer
	Controller      csi.ControllerServer
	GroupController csi.GroupControllerServer
	Node            csi.NodeServer
	// BeforeController is called ahead of each call of the Controller and GroupController
	// services that is about a volume; its error is the answer. It may be nil.
	BeforeController func(context.Context) error

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
	server := grpc.NewServer(grpc.UnaryInterceptor(interceptor(s.Log, s.Observer, s.BeforeController)))
	csi.RegisterIdentityServer(server, s.Identity)
	if s.Controller != nil {
		csi.RegisterControllerServer(server, s.Controller)
	}
	if s.GroupController != nil {
		csi.RegisterGroupControllerServer(server, s.GroupController)
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

// listen makes the socket, for this user alone. What is left of an earlier process, a
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
	return listenPrivately(ctx, path)
}

// listenPrivately makes the socket in a directory that only this user may enter
// and moves it into place when it is closed to everybody else: there is no moment
// in which it is open. Neither a umask, which belongs to the whole process, nor a
// thread with a umask of its own, which a container without privileges may not
// have (unshare is not in the runtime's seccomp profile), is needed.
//
// The directory's name begins with a dot, for kubelet's watcher of registrations
// looks into every other.
func listenPrivately(ctx context.Context, path string) (net.Listener, error) {
	private, err := os.MkdirTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer func() { _ = os.Remove(private) }()
	made := filepath.Join(private, "s")
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", made)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if unixListener, ok := listener.(*net.UnixListener); ok {
		unixListener.SetUnlinkOnClose(false) // it would look for the path it was made at
	}
	if err = os.Chmod(made, 0o600); err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), listener.Close(), os.Remove(made))
	}
	return &socket{Listener: listener, path: path}, nil
}

// socket is a listener that takes its path away when it is closed.
type socket struct {
	net.Listener
	path string
	once sync.Once
}

// Close implements net.Listener. Closing twice is harmless.
func (s *socket) Close() error {
	err := s.Listener.Close()
	s.once.Do(func() {
		if removeErr := os.Remove(s.path); !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	})
	return err
}
