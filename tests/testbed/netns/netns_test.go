// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func create(t *testing.T) Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making a network namespace needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip (Debian package iproute2)")
	}
	n := Namespace{Name: fmt.Sprintf("berth-test-%d", os.Getpid())}
	t.Cleanup(func() {
		if err := n.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := n.Create(t.Context(), "192.0.2.1/24"); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNamespace(t *testing.T) {
	n := create(t)
	if !n.Exists() {
		t.Fatal("created and not there")
	}
	if err := n.Create(t.Context(), "192.0.2.1/24"); err == nil {
		t.Error("created twice")
	}

	// A listener opened inside answers inside and nowhere else.
	var listener net.Listener
	if err := n.Do(func() (err error) { listener, err = net.Listen("tcp", "192.0.2.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			conn.Write([]byte("hello"))
			conn.Close()
		}
	}()
	if conn, err := net.Listen("tcp", "192.0.2.1:0"); err == nil {
		conn.Close()
		t.Error("the namespace's address is the machine's too")
	}
	var conn net.Conn
	if err := n.Do(func() (err error) { conn, err = net.Dial("tcp", listener.Addr().String()); return err }); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}

	argv := n.Command("sleep", "60")
	sleeper := exec.Command(argv[0], argv[1:]...)
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { sleeper.Process.Kill(); sleeper.Wait() }()
	for deadline := t.Context(); ; {
		pids, err := n.PIDs(deadline)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(pids, sleeper.Process.Pid) { // its pid is ip's: it was replaced
			break
		}
	}
}

// threadFromFirst is the thread that onOwnThread chose when it was called on the
// process's first one.
var threadFromFirst int

func init() { runtime.LockOSThread() } // TestMain runs on the first thread

func TestMain(m *testing.M) {
	onOwnThread(func() { threadFromFirst = unix.Gettid() })
	runtime.UnlockOSThread()
	os.Exit(m.Run())
}

// The process itself must never count as one of the namespace's: those are killed
// with it.
func TestDoNeverMovesTheProcess(t *testing.T) {
	if threadFromFirst == 0 || threadFromFirst == os.Getpid() {
		t.Errorf("the namespace was entered on thread %d of process %d", threadFromFirst, os.Getpid())
	}
}

func TestTap(t *testing.T) {
	n := create(t)
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs /dev/net/tun")
	}
	joined := func() bool {
		out, err := exec.Command("ip", "-n", n.Name, "link", "show", "master", Bridge).Output()
		if err != nil {
			t.Fatal(err)
		}
		return len(out) > 0
	}
	for range 2 { // again, after a power loss
		if err := n.AddTap(t.Context(), "tap1"); err != nil {
			t.Fatal(err)
		}
	}
	if !joined() {
		t.Error("a new tap is not on the bridge")
	}
	if err := n.Part(t.Context(), "tap1"); err != nil || joined() {
		t.Errorf("part: %v, joined %t", err, joined())
	}
	if err := n.Join(t.Context(), "tap1"); err != nil || !joined() {
		t.Errorf("join: %v, joined %t", err, joined())
	}
}

func TestDeleteTwice(t *testing.T) {
	n := create(t)
	for range 2 {
		if err := n.Delete(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n.Exists() {
		t.Error("deleted and still there")
	}
	if pids, err := n.PIDs(t.Context()); err != nil || len(pids) != 0 {
		t.Errorf("pids of no namespace = %v, %v", pids, err)
	}
}
