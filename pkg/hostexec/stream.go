// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostexec

import (
	"errors"
	"io"
	"sync"
)

// errStreamOver: the program wrote on after Run had returned.
var errStreamOver = errors.New("nobody reads it any more")

// stream hands an output on until it is ended, also that of a program that outlives its
// deadline, or until the reader does not want more.
type stream struct {
	mu   sync.Mutex
	to   io.Writer
	over bool
	err  error
}

// Write implements io.Writer.
func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.over:
		return 0, errStreamOver
	case s.err != nil:
		return 0, s.err
	}
	n, err := s.to.Write(p)
	s.err = err
	return n, err
}

func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
}

// failure is what the reader returned, if it did not take all.
func (s *stream) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}
