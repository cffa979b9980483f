// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// dial connects to a socket in a guest's folder and holds the socket's lock
// until the connection is closed: QEMU serves one client at a time, and a
// second one would wait in the dark. Reads and writes fail when the context
// ends.
func dial(ctx context.Context, dir, socket string) (net.Conn, error) {
	lock, err := lockFile(ctx, filepath.Join(dir, socket+".lock"))
	if err != nil {
		return nil, err
	}
	folder, err := os.Open(dir)
	if err != nil {
		lock.Close()
		return nil, err
	}
	defer folder.Close()
	// The path through the descriptor is short, whatever the folder's is.
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), socket))
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("connect to %s: %w", filepath.Join(dir, socket), err)
	}
	// Not the context's deadline itself: a read that it ended could fail a
	// moment before the context says that it has ended.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	return &lockedConn{Conn: conn, lock: lock, stop: stop}, nil
}

type lockedConn struct {
	net.Conn
	lock *os.File
	stop func() bool
}

// Close closes the connection and lets the next client in.
func (c *lockedConn) Close() error {
	c.stop()
	err := c.Conn.Close()
	c.lock.Close()
	return err
}

// lockFile takes a file's lock, waiting for it until the context ends.
func lockFile(ctx context.Context, path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return file, nil
		}
		if err != syscall.EWOULDBLOCK && err != syscall.EINTR {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
