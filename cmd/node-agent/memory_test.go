// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

const smaps = `00400000-01987000 r-xp 00000000 fe:00 9979248                            /node-agent
Size:              22044 kB
Rss:               16660 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me sd
01987000-0309c000 r--p 01587000 fe:00 9979248                            /node-agent
Private_Dirty:         4 kB
Anonymous:             4 kB
Swap:                  0 kB
0309c000-0309d000 r--p 02c9c000 fe:00 9979248                            /node-agent
Private_Dirty:         0 kB
Anonymous:             0 kB
Swap:                  8 kB
0309d000-0313e000 rw-p 02c9c000 fe:00 9979248                            /node-agent
Private_Dirty:         0 kB
Anonymous:             0 kB
1a93f7c00000-1a93f8800000 rw-p 00000000 00:00 0
Private_Dirty:      7356 kB
7fd030ee7000-7fd03103d000 r-xp 00026000 fe:00 326269                     /usr/lib/libc.so.6
Private_Dirty:         0 kB
`

// TestOnlyUntouchedPagesAreGivenBack: a page that was written, as relocation does in a
// position-independent program, is not in the file.
func TestOnlyUntouchedPagesAreGivenBack(t *testing.T) {
	t.Parallel()
	found, err := untouchedMappings(strings.NewReader(smaps), "/node-agent")
	if err != nil || len(found) != 1 || found[0] != (mapping{0x400000, 0x1987000}) {
		t.Errorf("%+v, %v", found, err)
	}
	if _, err := untouchedMappings(strings.NewReader("0040 r-xp 00000000 fe:00 1 /node-agent\n"), "/node-agent"); err == nil {
		t.Error("a range that is none was taken")
	}
}

func TestTrimMemory(t *testing.T) {
	t.Parallel()
	if err := trimMemory(); err != nil {
		t.Fatal(err)
	}
}

func FuzzUntouchedMappings(f *testing.F) {
	f.Add(smaps)
	f.Fuzz(func(t *testing.T, text string) {
		found, err := untouchedMappings(strings.NewReader(text), "/node-agent")
		if err != nil {
			return
		}
		for _, m := range found {
			if m.end <= m.start {
				t.Errorf("%+v", m)
			}
		}
	})
}
