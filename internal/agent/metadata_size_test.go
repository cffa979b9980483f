// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"compress/gzip"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// chance makes what no compression makes smaller.
type chance struct{ *rand.Rand }

func (c chance) text(alphabet string, n int) string {
	var b strings.Builder
	for range n {
		b.WriteByte(alphabet[c.IntN(len(alphabet))])
	}
	return b.String()
}

func (c chance) lvmUUID() string {
	const chars = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	var parts []string
	for _, n := range []int{6, 4, 4, 4, 4, 4, 6} {
		parts = append(parts, c.text(chars, n))
	}
	return strings.Join(parts, "-")
}

func (c chance) uuid() string {
	var parts []string
	for _, n := range []int{8, 4, 4, 4, 12} {
		parts = append(parts, c.text("0123456789abcdef", n))
	}
	return strings.Join(parts, "-")
}

// volume is one of the logical volumes of a group as lvm 2.03.31 writes it, and what it has
// below it.
func (c chance) volume(b *strings.Builder, kind string, n int) {
	id := c.uuid()
	lv := func(name, tags, segment string) {
		fmt.Fprintf(b, "%s {\nid = %q\nstatus = [\"READ\", \"WRITE\", \"VISIBLE\"]\nflags = []\n%screation_time = %d\ncreation_host = \"node-1\"\nsegment_count = 1\n\nsegment1 {\nstart_extent = 0\nextent_count = 25\n\n%s}\n}\n\n",
			name, c.lvmUUID(), tags, 1795760748+n*c.IntN(5), segment)
	}
	linear := func() string {
		return fmt.Sprintf("type = \"striped\"\nstripe_count = 1\n\nstripes = [\n\"pv%d\", %d\n]\n", c.IntN(8), n*25+c.IntN(10))
	}
	tags := "tags = [\"berth.dev/volume=pvc-" + c.uuid() + "\"]\n"
	switch kind {
	case "linear":
		lv(id, tags, linear())
	case "thin":
		lv(id, tags, fmt.Sprintf("type = \"thin\"\nthin_pool = \"thin\"\ntransaction_id = %d\ndevice_id = %d\n", n, n+1))
	case "raid1":
		lv(id, tags, fmt.Sprintf("type = \"raid1\"\ndevice_count = 2\nregion_size = 4096\n\nraids = [\n\"%[1]s_rmeta_0\", \"%[1]s_rimage_0\",\n\"%[1]s_rmeta_1\", \"%[1]s_rimage_1\"\n]\n", id))
		for leg := range 2 {
			lv(fmt.Sprintf("%s_rmeta_%d", id, leg), "", linear())
			lv(fmt.Sprintf("%s_rimage_%d", id, leg), "", linear())
		}
	}
}

// The metadata of 5,000 volumes have room in a ConfigMap, but for those that have legs, of
// which each is five. Names, tags and UUIDs are by chance, so that compression finds nothing
// in them.
func TestMetadataOf5000VolumesFit(t *testing.T) {
	t.Parallel()
	for kind, fits := range map[string]bool{"linear": true, "thin": true, "raid1": false} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			c := chance{rand.New(rand.NewPCG(1, 2))}
			var text strings.Builder
			for n := range 5000 {
				c.volume(&text, kind, n)
			}
			var packed strings.Builder
			z := gzip.NewWriter(&packed)
			if _, err := z.Write([]byte(text.String())); err != nil {
				t.Fatal(err)
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d bytes, compressed %d", text.Len(), packed.Len())
			if got := packed.Len() <= mostObjectBytes; got != fits {
				t.Errorf("%d bytes fit: %v", packed.Len(), got)
			}
		})
	}
}
