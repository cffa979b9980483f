// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Change says that something about a block device may be different now. It is a
// hint to look again, not a statement: what is, is read from sysfs.
type Change struct {
	// KernelName of the device; empty when Rescan is set.
	KernelName string
	// Removed is true when the kernel says that the device is gone.
	Removed bool
	// Udev is true when the hint comes from udev having written its record, not
	// from the kernel: links may be new, the content is not.
	Udev bool
	// Rescan is set when events were lost: everything must be read again.
	Rescan bool
}

// Watcher reports changes of block devices as they happen, without polling: from
// the kernel's uevents, and from udev's records, which appear some milliseconds
// after the event.
//
// The kernel sends the events of block devices to every network namespace that
// belongs to the initial user namespace (lib/kobject_uevent.c,
// uevent_net_broadcast_untagged), so an ordinary pod hears them. A pod with user
// namespaces (hostUsers: false) does not.
type Watcher struct {
	changes chan Change
	sysfs   Sysfs
	files   []*os.File
	done    sync.WaitGroup
	err     error
	errOnce sync.Once
	cancel  context.CancelFunc
}

const (
	// kernelGroup is the multicast group the kernel itself sends to; udevd
	// forwards to group 2.
	kernelGroup = 1
	// receiveBufferBytes holds some 20,000 events. It is a limit, not memory that is
	// used.
	receiveBufferBytes = 32 << 20
	// messageBytes is more than the kernel's UEVENT_BUFFER_SIZE of 2 KiB and its
	// header.
	messageBytes = 16 << 10
)

// Watch starts to watch. Begin to watch first and walk sysfs second: then nothing
// is missed in between. The channel of Changes is closed when the context ends or
// watching fails; Err then says why.
func Watch(ctx context.Context, sysfs Sysfs) (*Watcher, error) {
	return watch(ctx, sysfs, receiveBufferBytes)
}

func watch(ctx context.Context, sysfs Sysfs, bufferBytes int) (*Watcher, error) {
	netlink, err := openUevents(bufferBytes)
	if err != nil {
		return nil, err
	}
	udev, err := openUdevRecords(sysfs.UdevDirectory())
	if err != nil {
		return nil, errors.Join(err, netlink.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &Watcher{changes: make(chan Change, 256), sysfs: sysfs, files: []*os.File{netlink}, cancel: cancel}
	w.done.Go(func() { w.finish(w.readUevents(ctx, netlink)) })
	if udev != nil {
		w.files = append(w.files, udev)
		w.done.Go(func() { w.finish(w.readUdevRecords(ctx, udev)) })
	}
	go func() {
		<-ctx.Done()
		for _, file := range w.files {
			_ = file.Close() // wakes the readers
		}
		w.done.Wait()
		close(w.changes)
	}()
	return w, nil
}

// Changes are the hints, in the order of the events.
func (w *Watcher) Changes() <-chan Change { return w.changes }

// Err is why the watcher stopped, nil if its context ended. It may be asked once
// the channel of Changes is closed.
func (w *Watcher) Err() error { return w.err }

func (w *Watcher) finish(err error) {
	if err != nil {
		w.errOnce.Do(func() { w.err = err })
	}
	w.cancel()
}

func (w *Watcher) send(ctx context.Context, change Change) bool {
	select {
	case w.changes <- change:
		return true
	case <-ctx.Done():
		return false
	}
}

func openUevents(bufferBytes int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("open a socket for uevents: %w", err)
	}
	file := os.NewFile(uintptr(fd), "uevents")
	// The forced size needs CAP_NET_ADMIN; without it net.core.rmem_max bounds the
	// buffer, and an overflow costs a walk.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferBytes) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bufferBytes)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		return nil, errors.Join(fmt.Errorf("listen to uevents: %w", err), file.Close())
	}
	return file, nil
}

func (w *Watcher) readUevents(ctx context.Context, file *os.File) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return fmt.Errorf("listen to uevents: %w", err)
	}
	buffer := make([]byte, messageBytes)
	for {
		var n int
		var from unix.Sockaddr
		var receiveErr error
		err := conn.Read(func(fd uintptr) bool {
			n, from, receiveErr = unix.Recvfrom(int(fd), buffer, 0)
			return !errors.Is(receiveErr, unix.EAGAIN)
		})
		if err == nil {
			err = receiveErr
		}
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // the end of the context is the normal end
		case errors.Is(err, unix.ENOBUFS):
			if !w.send(ctx, Change{Rescan: true}) {
				return nil
			}
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("listen to uevents: %w", err)
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue // not the kernel
		}
		event, err := ParseUevent(buffer[:n])
		if err != nil || event.Subsystem != "block" {
			continue
		}
		if event.OldDevPath != "" {
			if !w.send(ctx, Change{KernelName: Uevent{DevPath: event.OldDevPath}.KernelName(), Removed: true}) {
				return nil
			}
		}
		if !w.send(ctx, Change{KernelName: event.KernelName(), Removed: event.Action == "remove"}) {
			return nil
		}
	}
}

// openUdevRecords watches the directory of udev's records, into which udevd moves
// each new version. A host without udev has none: then there is nothing to watch,
// and nothing that would come later.
func openUdevRecords(directory string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch udev's records: %w", err)
	}
	file := os.NewFile(uintptr(fd), "udev records")
	_, err = unix.InotifyAddWatch(fd, directory, unix.IN_MOVED_TO|unix.IN_ONLYDIR)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, file.Close()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch udev's records in %s: %w", directory, err), file.Close())
	}
	return file, nil
}

func (w *Watcher) readUdevRecords(ctx context.Context, file *os.File) error {
	buffer := make([]byte, 64<<10)
	for {
		n, err := file.Read(buffer)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the end of the context is the normal end
		}
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("watch udev's records: %w", err)
		}
		events, lost := ParseInotify(buffer[:max(n, 0)])
		if lost && !w.send(ctx, Change{Rescan: true}) {
			return nil
		}
		for _, event := range events {
			kernelName := w.deviceOfRecord(event.Name)
			if kernelName != "" && !w.send(ctx, Change{KernelName: kernelName, Udev: true}) {
				return nil
			}
		}
	}
}

// deviceOfRecord turns "b254:16" into a kernel name, through the link that sysfs
// has for every device number.
func (w *Watcher) deviceOfRecord(name string) string {
	number, isBlock := recordNumber(name)
	if !isBlock {
		return ""
	}
	target, err := os.Readlink(filepath.Join(w.sysfs.root(), "dev/block", number))
	if err != nil {
		return "" // gone, which the kernel says itself
	}
	return filepath.Base(target)
}
