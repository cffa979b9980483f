// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// initScript is the only program of the initial RAM disk beside busybox. The
// distribution's own initial RAM disk starts udev and looks at every disk; under
// emulation that takes longer than all of this.
//
//go:embed initramfs/init
var initScript []byte

// rootModules are the modules that the root disk needs, in a kernel that has
// virtio-pci built in. crc32c comes by request_module in ext4, which
// modules.dep does not tell.
var rootModules = []string{"virtio_blk", "crc32c_generic", "ext4"}

// writeInitramfs writes the initial RAM disk for the kernel whose modules are
// in modulesDir, with a statically linked busybox.
func writeInitramfs(path, modulesDir, busybox string) error {
	modules, err := moduleClosure(modulesDir, rootModules)
	if err != nil {
		return err
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	var archive cpioArchive
	for _, dir := range []string{"bin", "proc", "sys", "dev", "target", "modules"} {
		archive.add(dir, 0o40755, nil)
	}
	archive.add("bin/busybox", 0o100755, program)
	archive.add("init", 0o100755, initScript)
	for i, module := range modules {
		content, err := readModule(filepath.Join(modulesDir, module))
		if err != nil {
			return err
		}
		name, _, _ := strings.Cut(filepath.Base(module), ".")
		archive.add(fmt.Sprintf("modules/%02d-%s.ko", i, name), 0o100644, content)
	}
	return os.WriteFile(path, archive.close(), 0o644)
}

// moduleClosure returns the files of the modules and of all they depend on,
// each after its dependencies, relative to modulesDir. A module that is built
// into the kernel has no file.
func moduleClosure(modulesDir string, names []string) ([]string, error) {
	builtin, err := os.ReadFile(filepath.Join(modulesDir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	dep, err := os.ReadFile(filepath.Join(modulesDir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	needs := map[string][]string{} // file to the files it needs, nearest first
	files := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(dep)); lines.Scan(); {
		file, rest, found := strings.Cut(lines.Text(), ":")
		if !found {
			continue
		}
		needs[file] = strings.Fields(rest)
		files[moduleName(file)] = file
	}
	isBuiltin := map[string]bool{}
	for file := range strings.FieldsSeq(string(builtin)) {
		isBuiltin[moduleName(file)] = true
	}
	var order []string
	done := map[string]bool{}
	var visit func(file string)
	visit = func(file string) {
		if done[file] {
			return
		}
		done[file] = true
		for _, needed := range needs[file] {
			visit(needed)
		}
		order = append(order, file)
	}
	for _, name := range names {
		file, found := files[name]
		switch {
		case found:
			visit(file)
		case !isBuiltin[name]:
			return nil, fmt.Errorf("the kernel in %s has no module %s", modulesDir, name)
		}
	}
	return order, nil
}

// moduleName turns a module's file into its name, in which dashes and
// underscores are the same.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

func readModule(path string) ([]byte, error) {
	if !strings.HasSuffix(path, ".xz") {
		return os.ReadFile(path)
	}
	content, err := exec.Command("xz", "-dc", path).Output()
	if err != nil {
		return nil, fmt.Errorf("uncompress %s: %w", path, err)
	}
	return content, nil
}

// cpioArchive is an archive in the "newc" format, the one that the kernel
// unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
type cpioArchive struct {
	buffer bytes.Buffer
	inode  int
}

func (a *cpioArchive) add(name string, mode uint32, content []byte) {
	a.inode++
	links := 1
	if mode&0o40000 != 0 {
		links = 2
	}
	// magic, inode, mode, uid, gid, nlink, mtime, filesize, devmajor,
	// devminor, rdevmajor, rdevminor, namesize, check
	fmt.Fprintf(&a.buffer, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	a.buffer.WriteString(name + "\x00")
	a.pad()
	a.buffer.Write(content)
	a.pad()
}

func (a *cpioArchive) pad() {
	for a.buffer.Len()%4 != 0 {
		a.buffer.WriteByte(0)
	}
}

func (a *cpioArchive) close() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.buffer.Bytes()
}

// writeKernel writes the kernel that QEMU starts: the one inside a bzImage, so
// that the guest needs not uncompress it, if it can be taken out, and else the
// bzImage itself. The kernel has an entry point for that (CONFIG_PVH).
func writeKernel(path, bzImage string) error {
	image, err := os.ReadFile(bzImage)
	if err != nil {
		return err
	}
	if payload, ok := zstdPayload(image); ok {
		command := exec.Command("zstd", "-dc")
		command.Stdin = bytes.NewReader(payload)
		if kernel, err := command.Output(); err == nil && bytes.HasPrefix(kernel, []byte("\x7fELF")) {
			return os.WriteFile(path, kernel, 0o644)
		}
	}
	return os.WriteFile(path, image, 0o644)
}

// zstdPayload finds the compressed kernel in a bzImage by its header
// (Documentation/arch/x86/boot.rst: setup_sects, payload_offset and
// payload_length). Four bytes after it tell the uncompressed size.
func zstdPayload(image []byte) ([]byte, bool) {
	const setupSects, magicAt, offsetAt, lengthAt, headerEnd = 0x1f1, 0x202, 0x248, 0x24c, 0x250
	if len(image) < headerEnd || string(image[magicAt:magicAt+4]) != "HdrS" {
		return nil, false
	}
	sectors := uint64(image[setupSects])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + uint64(binary.LittleEndian.Uint32(image[offsetAt:]))
	end := start + uint64(binary.LittleEndian.Uint32(image[lengthAt:]))
	if end > uint64(len(image)) || end < start+8 || !bytes.Equal(image[start:start+4], []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		return nil, false
	}
	return image[start : end-4], true
}

// findKernel returns the newest kernel of a root filesystem and the folder of
// its modules.
func findKernel(root string) (bzImage, modulesDir string, err error) {
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return "", "", err
	}
	if len(images) == 0 {
		return "", "", errors.New("the root filesystem has no kernel")
	}
	bzImage = images[len(images)-1]
	version := strings.TrimPrefix(filepath.Base(bzImage), "vmlinuz-")
	modulesDir = filepath.Join(root, "lib", "modules", version)
	if _, err := os.Stat(modulesDir); errors.Is(err, fs.ErrNotExist) {
		return "", "", fmt.Errorf("kernel %s has no modules", version)
	}
	return bzImage, modulesDir, nil
}
