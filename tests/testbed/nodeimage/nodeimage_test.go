// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-dev/berth/tests/testbed/guest"
)

// writeFiles writes files below dir, path to content.
func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const modulesDep = `kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko
kernel/fs/jbd2/jbd2.ko:
kernel/fs/mbcache.ko:
kernel/lib/crc16.ko:
kernel/crypto/crc32c_generic.ko:
kernel/drivers/block/virtio-blk.ko:
kernel/drivers/block/other.ko:
`

func TestModuleClosureLoadsDependenciesFirst(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"modules.dep": modulesDep, "modules.builtin": "kernel/drivers/virtio/virtio_pci.ko\n"})
	order, err := moduleClosure(dir, []string{"virtio_pci", "virtio_blk", "ext4", "jbd2"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"kernel/drivers/block/virtio-blk.ko", "kernel/lib/crc16.ko", "kernel/fs/mbcache.ko", "kernel/fs/jbd2/jbd2.ko", "kernel/fs/ext4/ext4.ko"}
	if !slices.Equal(order, want) {
		t.Errorf("order = %v, want %v", order, want)
	}
	if _, err := moduleClosure(dir, []string{"nosuch"}); err == nil {
		t.Error("a module that the kernel lacks was found")
	}
}

// readCPIO reads an archive in the "newc" format: name to content.
func readCPIO(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	files := map[string]string{}
	pad := func(n int) int { return (n + 3) &^ 3 }
	for at := 0; ; {
		header := string(archive[at : at+110])
		if !strings.HasPrefix(header, "070701") {
			t.Fatalf("no header at %d", at)
		}
		field := func(n int) int {
			value, err := strconv.ParseInt(header[6+8*n:14+8*n], 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(value)
		}
		size, nameSize := field(6), field(11)
		name := string(archive[at+110 : at+110+nameSize-1])
		at = pad(at + 110 + nameSize)
		if name == "TRAILER!!!" {
			return files
		}
		files[name] = string(archive[at : at+size])
		at = pad(at + size)
	}
}

func TestInitramfs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := map[string]string{"modules.dep": modulesDep, "modules.builtin": "", "busybox": "busybox's content"}
	for line := range strings.Lines(modulesDep) {
		name, _, _ := strings.Cut(line, ":")
		files[name] = "module " + name
	}
	writeFiles(t, dir, files)
	path := filepath.Join(dir, "initrd")
	if err := writeInitramfs(path, dir, filepath.Join(dir, "busybox")); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got := readCPIO(t, content)
	for name, want := range map[string]string{
		"init": string(initScript), "bin/busybox": "busybox's content", "target": "", "dev": "",
		"modules/00-virtio-blk.ko": "module kernel/drivers/block/virtio-blk.ko",
		"modules/05-ext4.ko":       "module kernel/fs/ext4/ext4.ko",
	} {
		if content, there := got[name]; !there || content != want {
			t.Errorf("%s = %q, %t, want %q", name, content, there, want)
		}
	}
}

func TestInitScriptAnswersTheProbe(t *testing.T) {
	t.Parallel()
	for _, word := range []string{guest.ProbeMarker, guest.ProbeParameter} {
		if !bytes.Contains(initScript, []byte(word)) {
			t.Errorf("the init script does not know %q", word)
		}
	}
}

func TestZstdPayload(t *testing.T) {
	t.Parallel()
	magic := []byte{0x28, 0xb5, 0x2f, 0xfd}
	image := make([]byte, 4096)
	image[0x1f1] = 2 // setup_sects, so that the kernel begins at 3 * 512
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(image[0x248:], 16)
	binary.LittleEndian.PutUint32(image[0x24c:], 104)
	copy(image[3*512+16:], magic)
	if payload, ok := zstdPayload(image); !ok || len(payload) != 100 || !bytes.HasPrefix(payload, magic) {
		t.Errorf("payload of %d bytes, %t", len(payload), ok)
	}
	for name, change := range map[string]func([]byte){
		"no kernel":           func(b []byte) { b[0x202] = 'X' },
		"another compression": func(b []byte) { b[3*512+16] = 0x1f },
		"beyond the end":      func(b []byte) { binary.LittleEndian.PutUint32(b[0x24c:], 1<<20) },
		"empty":               func(b []byte) { binary.LittleEndian.PutUint32(b[0x24c:], 0) },
	} {
		broken := bytes.Clone(image)
		change(broken)
		if _, ok := zstdPayload(broken); ok {
			t.Errorf("found a payload: %s", name)
		}
	}
	if _, ok := zstdPayload([]byte("short")); ok {
		t.Error("found a payload in a short file")
	}
}

func TestForeignDisksFitTheirSerials(t *testing.T) {
	t.Parallel()
	for _, foreign := range ForeignDisks {
		disk := guest.Disk{Serial: foreign.Serial("N9"), Class: guest.ClassForeign, Bus: guest.BusVirtio, SizeBytes: foreign.SizeBytes}
		if err := disk.Validate(); err != nil {
			t.Error(err)
		}
		if !strings.HasPrefix(disk.Serial, ForeignSerialPrefix) {
			t.Errorf("serial %s does not say that the disk is foreign", disk.Serial)
		}
	}
}

func TestSetUnits(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	writeFiles(t, root, map[string]string{
		"etc/systemd/system/kubelet.service": "", "etc/systemd/system/getty.target.wants/x": "",
		"etc/systemd/system/multi-user.target.wants/containerd.service": "stale",
	})
	for range 2 {
		if err := setUnits(root); err != nil {
			t.Fatal(err)
		}
	}
	for link, want := range map[string]string{
		"fstrim.timer": "/dev/null",
		"multi-user.target.wants/kubelet.service":    "/etc/systemd/system/kubelet.service",
		"multi-user.target.wants/containerd.service": "/usr/lib/systemd/system/containerd.service",
		"default.target": "/usr/lib/systemd/system/multi-user.target",
	} {
		if got, err := os.Readlink(filepath.Join(root, "etc/systemd/system", link)); err != nil || got != want {
			t.Errorf("%s -> %s, %v, want %s", link, got, err, want)
		}
	}
}

func TestBaseKeyDependsOnItsInputs(t *testing.T) {
	t.Parallel()
	key := func(programs Programs, images []string) string {
		k, err := BaseKey(RootfsKey(), programs, images)
		if err != nil {
			t.Fatal(err)
		}
		return k.String()
	}
	first := key(Programs{"kubelet": "/c/kubelet-1/kubelet"}, []string{"/c/images-1/a.tar"})
	if again := key(Programs{"kubelet": "/elsewhere/kubelet-1/kubelet"}, []string{"/elsewhere/images-1/a.tar"}); again != first {
		t.Error("the key depends on where the cache is")
	}
	for name, other := range map[string]string{
		"another kubelet": key(Programs{"kubelet": "/c/kubelet-2/kubelet"}, []string{"/c/images-1/a.tar"}),
		"another image":   key(Programs{"kubelet": "/c/kubelet-1/kubelet"}, []string{"/c/images-2/a.tar"}),
	} {
		if other == first {
			t.Errorf("the key ignores %s", name)
		}
	}
}
