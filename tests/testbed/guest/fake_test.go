// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// request is a line that a client sends.
type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
}

// serve listens on a socket in a new folder, whose path is longer than a Unix
// socket's may be, and calls handle with each connection, one after the other.
func serve(t *testing.T, socket string, handle func(conn net.Conn, lines *bufio.Reader)) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), strings.Repeat("deep/", 30))
	short := t.TempDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", filepath.Join(short, "s"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(short, "s"), filepath.Join(dir, socket)); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			handle(conn, bufio.NewReader(conn))
			conn.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
	return dir
}

// receiveRequest reads one request; ok is false at the connection's end.
func receiveRequest(lines *bufio.Reader) (r request, ok bool) {
	line, err := lines.ReadString('\n')
	if err != nil {
		return r, false
	}
	err = json.Unmarshal([]byte(strings.TrimPrefix(line, "\xff")), &r)
	return r, err == nil
}

// send writes a line of JSON.
func send(conn net.Conn, value any) {
	line, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	conn.Write(append(line, '\n'))
}

type object = map[string]any
