// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostexec

import (
	"bytes"
	"sync"
)

// outputLimitBytes bounds each stream that is kept of a program. The report of a
// volume group with ten thousand volumes is about 10 MB.
const outputLimitBytes = 16 << 20

// boundedBuffer keeps the first bytes of a stream and swallows the rest, so that
// the program never waits for a reader. It may be read while it is written, which
// happens when a program outlives its deadline.
type boundedBuffer struct {
	mu       sync.Mutex
	buf      bytes.Buffer
	overflow bool
}

// Write never fails and never writes short.
func (b *boundedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	room := outputLimitBytes - b.buf.Len()
	if len(p) > room {
		b.overflow = true
		b.buf.Write(p[:room])
		return len(p), nil
	}
	b.buf.Write(p)
	return len(p), nil
}

// snapshot returns a copy of what came so far and whether something is missing.
func (b *boundedBuffer) snapshot() (data []byte, overflow bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes()), b.overflow
}
