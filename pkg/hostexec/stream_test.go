// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostexec

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestStdoutAsItComes(t *testing.T) {
	t.Parallel()
	c := sh("head -c 20000000 /dev/zero; echo end; echo err >&2")
	var out bytes.Buffer
	c.Stdout = &out
	res, err := local(t).Run(t.Context(), c)
	if err != nil || out.Len() != 20_000_004 || !bytes.HasSuffix(out.Bytes(), []byte("end\n")) || len(res.Stdout) > 0 || string(res.Stderr) != "err\n" {
		t.Errorf("%d bytes came, %d were kept, stderr %q, %v", out.Len(), len(res.Stdout), res.Stderr, err)
	}
}

var errFull = errors.New("full")

// small takes so many bytes.
type small struct{ room int }

func (s *small) Write(p []byte) (int, error) {
	if s.room -= len(p); s.room < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestStdoutNobodyWants(t *testing.T) {
	t.Parallel()
	c := sh("while echo more; do :; done")
	c.Stdout = &small{room: 1 << 10}
	c.Timeout = time.Minute
	if _, err := local(t).Run(t.Context(), c); !errors.Is(err, errFull) {
		t.Errorf("got %v, want what the reader said", err)
	}
}

func TestStdoutOfOneThatHangs(t *testing.T) {
	t.Parallel()
	c := sh("echo begin; sleep 100")
	var out strings.Builder
	c.Stdout, c.Timeout = &out, 300*time.Millisecond
	var exit *ExitError
	if _, err := local(t).Run(t.Context(), c); !errors.As(err, &exit) || !exit.TimedOut || out.String() != "begin\n" {
		t.Errorf("got %v after %q", err, out.String())
	}
}

func TestStreamEnds(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	s := &stream{to: &out}
	if _, err := s.Write([]byte("a")); err != nil {
		t.Fatal(err)
	}
	s.end()
	if _, err := s.Write([]byte("b")); err == nil || out.String() != "a" || s.failure() != nil {
		t.Errorf("got %q, %v, %v", out.String(), err, s.failure())
	}
}
