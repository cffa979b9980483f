// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// ErrCryptoEraseUnsupported: the disk cannot throw its key away, or other data would be
// lost with it.
var ErrCryptoEraseUnsupported = errors.New("the disk cannot be erased by its key")

// nvmeCommand is struct nvme_passthru_cmd of include/uapi/linux/nvme_ioctl.h.
type nvmeCommand struct {
	Opcode, Flags                   uint8
	_                               uint16
	NamespaceID                     uint32
	_, _                            uint32
	Metadata                        uint64
	Address                         uint64
	MetadataBytes, DataBytes        uint32
	DW10, DW11, DW12, DW13, DW14    uint32
	DW15, TimeoutMilliseconds, Back uint32
}

// The ioctls of include/uapi/linux/nvme_ioctl.h.
const (
	nvmeIoctlID    = 'N'<<8 | 0x40
	nvmeIoctlAdmin = 3<<30 | 72<<16 | 'N'<<8 | 0x41
)

// From the NVM Express Base Specification, revision 2.0: admin opcodes (figure 138),
// CNS values of Identify (figure 273), and Format NVM (section 5.14).
const (
	nvmeIdentify  = 0x06
	nvmeFormatNVM = 0x80

	cnsNamespace  = 0x00
	cnsController = 0x01
	cnsActive     = 0x02
	cnsAllocated  = 0x10

	identifyBytes = 4096

	eraseCrypto = 2 // Secure Erase Settings: the key is deleted

	// formatTimeoutMilliseconds bounds the command. Deleting a key takes seconds; the
	// namespace takes no other commands meanwhile.
	formatTimeoutMilliseconds = 10 * 60 * 1000
)

// nvmeAdmin sends an admin command, with room for what comes back.
type nvmeAdmin func(c nvmeCommand, data []byte) error

// CryptoErasable reports whether Wipe can erase an open disk by deleting its key: it is
// an NVMe namespace whose controller can (bit 2 of FNA), and no other namespace would be
// erased with it. A disk of another kind is false without an error.
func CryptoErasable(f *os.File) (bool, error) {
	nsid, admin, err := nvmeNamespace(f)
	if err == nil {
		err = cryptoErasable(nsid, admin)
	}
	if errors.Is(err, ErrCryptoEraseUnsupported) {
		return false, nil
	}
	return err == nil, err
}

// nvmeNamespace returns the number of the namespace that a file is, and how to command
// its controller.
func nvmeNamespace(f *os.File) (nsid uint32, _ nvmeAdmin, err error) {
	id, err := ioctlValue(f, nvmeIoctlID, nil)
	if unsupported(err) || errors.Is(err, unix.EINVAL) {
		return 0, nil, fmt.Errorf("%w: %s is no NVMe namespace", ErrCryptoEraseUnsupported, f.Name())
	}
	if err != nil {
		return 0, nil, fmt.Errorf("ask %s for its namespace: %w", f.Name(), err)
	}
	return uint32(id), func(c nvmeCommand, data []byte) error {
		if len(data) > 0 {
			c.Address, c.DataBytes = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(data)))), uint32(len(data))
		}
		status, err := ioctlValue(f, nvmeIoctlAdmin, unsafe.Pointer(&c))
		runtime.KeepAlive(data)
		if err == nil && status != 0 {
			err = fmt.Errorf("the controller answers with status %#x", status)
		}
		return err
	}, nil
}

// cryptoErasable returns nil, or ErrCryptoEraseUnsupported with the reason.
func cryptoErasable(nsid uint32, admin nvmeAdmin) error {
	identify := func(cns, of uint32) ([]byte, error) {
		data := alignedBuffer(identifyBytes)
		if err := admin(nvmeCommand{Opcode: nvmeIdentify, NamespaceID: of, DW10: cns}, data); err != nil {
			return nil, fmt.Errorf("identify (CNS %#x): %w", cns, err)
		}
		return data, nil
	}
	controller, err := identify(cnsController, 0)
	if err != nil {
		return err
	}
	const (
		canFormat  = 1 << 1 // of OACS: Format NVM
		canManage  = 1 << 3 // of OACS: Namespace Management
		ofAll      = 1<<0 | 1<<1
		cryptoable = 1 << 2
	)
	oacs, fna := binary.LittleEndian.Uint16(controller[256:]), controller[524]
	if oacs&canFormat == 0 || fna&cryptoable == 0 {
		return fmt.Errorf("%w: its NVMe controller has no cryptographic erase", ErrCryptoEraseUnsupported)
	}
	if fna&ofAll == 0 {
		return nil
	}
	lists := []uint32{cnsActive}
	if oacs&canManage != 0 {
		lists = append(lists, cnsAllocated)
	}
	for _, cns := range lists {
		data, err := identify(cns, 0)
		if err != nil {
			return err
		}
		if others := otherNamespaces(data, nsid); len(others) > 0 {
			return fmt.Errorf("%w: its NVMe controller erases all namespaces at once, and there is namespace %d beside %d",
				ErrCryptoEraseUnsupported, others[0], nsid)
		}
	}
	return nil
}

// otherNamespaces of a list that ends with a zero.
func otherNamespaces(list []byte, nsid uint32) []uint32 {
	var others []uint32
	for i := 0; i+4 <= len(list); i += 4 {
		n := binary.LittleEndian.Uint32(list[i:])
		if n == 0 {
			break
		}
		if n != nsid {
			others = append(others, n)
		}
	}
	return slices.Clip(others)
}

// formatNamespace formats a namespace in the format that it has, with a secure erase.
func formatNamespace(nsid uint32, admin nvmeAdmin, erase uint32) error {
	namespace := alignedBuffer(identifyBytes)
	if err := admin(nvmeCommand{Opcode: nvmeIdentify, NamespaceID: nsid, DW10: cnsNamespace}, namespace); err != nil {
		return fmt.Errorf("identify namespace %d: %w", nsid, err)
	}
	// FLBAS: bits 3:0 and 6:5 the format, bit 4 metadata beside the data or after it.
	// DPS: bits 2:0 the kind of protection, bit 3 its place.
	flbas, dps := uint32(namespace[26]), uint32(namespace[29])
	format := flbas&0xF | flbas>>4&1<<4 | dps&7<<5 | dps>>3&1<<8 | erase<<9 | flbas>>5&3<<12
	err := admin(nvmeCommand{Opcode: nvmeFormatNVM, NamespaceID: nsid, DW10: format, TimeoutMilliseconds: formatTimeoutMilliseconds}, nil)
	if err != nil {
		return fmt.Errorf("format namespace %d: %w", nsid, err)
	}
	return nil
}

// cryptoErase deletes the key of a disk. It writes to the disk before, and makes sure
// afterwards that this cannot be read any more: a controller that only says so is
// volume.ErrNotBlank.
func cryptoErase(f *os.File, sizeBytes int64, nsid uint32, admin nvmeAdmin) error {
	if err := cryptoErasable(nsid, admin); err != nil {
		return err
	}
	marks, err := writeMarks(f, sizeBytes)
	if err != nil {
		return err
	}
	if err := formatNamespace(nsid, admin, eraseCrypto); err != nil {
		return err
	}
	if err := requireSize(f, sizeBytes); err != nil {
		return fmt.Errorf("after the erase: %w", err)
	}
	return marks.requireGone(f)
}

// eraseMarks are random bytes on a disk that an erase must take away.
type eraseMarks struct {
	content []byte
	offsets []int64
}

const (
	markCount = 64
	markBytes = 4096
)

func writeMarks(f *os.File, sizeBytes int64) (eraseMarks, error) {
	m := eraseMarks{content: make([]byte, markBytes)}
	_, _ = rand.Read(m.content) // it never fails
	for i := range int64(markCount) {
		offset := (sizeBytes - markBytes) / (markCount - 1) * i / markBytes * markBytes
		if _, err := f.WriteAt(m.content, offset); err != nil {
			return m, fmt.Errorf("mark %s at %d: %w", f.Name(), offset, err)
		}
		m.offsets = append(m.offsets, offset)
	}
	if err := f.Sync(); err != nil {
		return m, fmt.Errorf("sync the marks on %s: %w", f.Name(), err)
	}
	return m, nil
}

// requireGone reads past the page cache.
func (m eraseMarks) requireGone(f *os.File) error {
	reader, closeReader, err := uncached(f)
	if err != nil {
		return err
	}
	defer closeReader()
	buffer := alignedBuffer(markBytes)
	for _, offset := range m.offsets {
		if _, err := reader.ReadAt(buffer, offset); err != nil {
			return fmt.Errorf("read back %s at %d: %w", f.Name(), offset, err)
		}
		if slices.Equal(buffer, m.content) {
			return fmt.Errorf("%s: the controller says that the key was deleted, and what was written before at offset %d is still there: %w",
				f.Name(), offset, volume.ErrNotBlank)
		}
	}
	return nil
}
