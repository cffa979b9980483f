// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"

	"github.com/berth-dev/berth/pkg/volume"
)

// SchemaVersion is the version of the files that this code writes. It reads this
// version only: a file from a newer Berth is an error, not a guess.
const SchemaVersion = 1

// State is how far a volume has come.
type State string

const (
	// Carving: the backend was asked to make the volume. Whether anything is on the
	// disk is not known.
	Carving State = "Carving"
	// Carved: the volume is on the disk and its record is known. Nothing was written
	// into it.
	Carved State = "Carved"
	// Formatting: the volume was found blank and mkfs was started. The volume was
	// never handed out, so mkfs may be repeated.
	Formatting State = "Formatting"
	// Ready: the volume may have been handed out. From here on it is never formatted.
	Ready State = "Ready"
	// Deleting: its deletion was asked for and has begun. Its data count as lost.
	Deleting State = "Deleting"
)

// Entry is what the node knows of one volume.
type Entry struct {
	// SchemaVersion is filled by the ledger.
	SchemaVersion int `json:"schemaVersion"`
	// UID of the LocalVolume, a lower-case UUID; it names the file.
	UID string `json:"uid"`
	// Name of the LocalVolume, which is also its CSI volume handle.
	Name string `json:"name"`
	// MachineID is /etc/machine-id of the host that made the volume.
	MachineID string `json:"machineID"`
	State     State  `json:"state"`

	Mode   volume.Mode   `json:"mode"`
	Pool   string        `json:"pool,omitempty"`
	Access volume.Access `json:"access"`
	FSType string        `json:"fsType,omitempty"`
	FSUUID string        `json:"fsUUID,omitempty"`
	// MkfsOptions are words for mkfs, which the Carver has checked.
	MkfsOptions []string `json:"mkfsOptions,omitempty"`

	Wipe volume.WipePolicy `json:"wipe"`

	// Fresh is true when the place was seen to hold no such volume before the backend
	// was first asked to make it. What is found there while Carving was then made for
	// this entry and handed to nobody; without it, it may be a volume that only the
	// ledger had lost.
	Fresh bool `json:"fresh,omitempty"`

	// Adopted is true when the volume is a disk that was handed over with its filesystem, or
	// a directory with what is in it: it is never formatted and never wiped.
	Adopted bool `json:"adopted,omitempty"`

	// LeftOver is what the volume is going to be made of, as long as that is not done: a volume
	// that no object stood for, which is never formatted. Of a whole disk it stands also while
	// Carved, when the disk is the volume's and the left-over's own entry is about to go.
	LeftOver *LeftOver `json:"leftOver,omitempty"`

	// Copied is true when the volume began as a copy of another one, or of a snapshot, and
	// has its filesystem from there: it is never formatted.
	Copied bool `json:"copied,omitempty"`

	// Encryption of the volume; nil for none.
	Encryption *Encryption `json:"encryption,omitempty"`

	// Limits that the pods are held to that have the volume; nil for none.
	Limits *volume.Limits `json:"limits,omitempty"`

	// Record is what the backend made; nil while Carving, and while Deleting a
	// volume that was never recorded.
	Record *volume.Record `json:"record,omitempty"`
}

// LeftOver names a volume that no object stands for.
type LeftOver struct {
	// UID that it lies under.
	UID string `json:"uid"`
	// Identity of the very thing, as volume.Examination has it.
	Identity string `json:"identity"`
}

// Formatted reports whether a filesystem was finished in the volume and may have
// been handed out.
func (e Entry) Formatted() bool {
	return e.State == Ready && e.FSType != "" && (e.Encryption == nil || e.Encryption.Seal == Sealed)
}

// LimitsOrNone are the volume's limits, zero where it has none.
func (e Entry) LimitsOrNone() volume.Limits {
	if e.Limits == nil {
		return volume.Limits{}
	}
	return *e.Limits
}

var uidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// validate is strict, for a damaged file must not pass for a weaker statement.
func (e Entry) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if e.SchemaVersion != SchemaVersion {
		return fmt.Errorf("schemaVersion %d: this Berth understands %d", e.SchemaVersion, SchemaVersion)
	}
	if !uidPattern.MatchString(e.UID) {
		bad("uid %q is not a lower-case UUID", e.UID)
	}
	if e.Name == "" {
		bad("name is empty")
	}
	if e.MachineID == "" {
		bad("machineID is empty")
	}
	switch e.Mode {
	case volume.ModeLVM, volume.ModeHostpath:
		if e.Pool == "" {
			bad("pool is empty in mode %s", e.Mode)
		}
	case volume.ModeDevice:
		if e.Pool != "" {
			bad("pool %q in mode device", e.Pool)
		}
	default:
		bad("mode %q is unknown", e.Mode)
	}
	switch e.Access {
	case volume.AccessBlock:
		if e.FSType != "" {
			bad("fsType %q of a block volume", e.FSType)
		}
	case volume.AccessFilesystem:
		if (e.FSType == "") != (e.Mode == volume.ModeHostpath) {
			bad("fsType %q in mode %s", e.FSType, e.Mode)
		}
	default:
		bad("access %q is unknown", e.Access)
	}
	if (e.FSType == "") != (e.FSUUID == "") {
		bad("fsType %q with fsUUID %q", e.FSType, e.FSUUID)
	}
	if err := volume.CheckWipe(e.Mode, e.Wipe); err != nil {
		bad("%v", err)
	}
	if e.Adopted && (e.Mode == volume.ModeLVM || e.Access != volume.AccessFilesystem || e.Wipe != volume.WipeNone || e.State == Formatting) {
		bad("adopted in mode %s with fsType %q, wipe %s and state %s", e.Mode, e.FSType, e.Wipe, e.State)
	}
	disk := e.Mode == volume.ModeDevice
	if l := e.LeftOver; l != nil && (!uidPattern.MatchString(l.UID) || l.UID == e.UID || l.Identity == "" || e.State != Carving && (!disk || e.State != Carved) || !disk && e.Adopted || e.Encryption != nil) {
		bad("a left-over %+v in mode %s and state %s (adopted: %v)", *l, e.Mode, e.State, e.Adopted)
	}
	if e.Copied && (e.Mode != volume.ModeLVM || e.Adopted || e.State == Formatting) {
		bad("copied in mode %s and state %s (adopted: %v)", e.Mode, e.State, e.Adopted)
	}
	if err := e.validateEncryption(); err != nil {
		errs = append(errs, err)
	}
	if e.Limits != nil && (e.Mode == volume.ModeHostpath || e.Limits.IsZero() || !e.Limits.Valid()) {
		bad("limits %+v in mode %s", *e.Limits, e.Mode)
	}
	switch e.State {
	case Carving:
		if e.Record != nil {
			bad("a record in state Carving")
		}
	case Deleting:
	case Carved, Formatting, Ready:
		if e.Record == nil {
			bad("no record in state %s", e.State)
		}
		if e.State == Formatting && e.FSType == "" {
			bad("state Formatting without fsType")
		}
	default:
		bad("state %q is unknown", e.State)
	}
	if e.Record != nil {
		if err := validateRecord(*e.Record, e.Mode); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func validateRecord(r volume.Record, mode volume.Mode) error {
	if r.Mode != mode {
		return fmt.Errorf("record of mode %q in an entry of mode %q", r.Mode, mode)
	}
	if r.SizeBytes < 0 {
		return fmt.Errorf("record of %d bytes", r.SizeBytes)
	}
	set := 0
	for _, have := range []bool{r.LVM != nil, r.Device != nil, r.Hostpath != nil} {
		if have {
			set++
		}
	}
	// A record is the same storage as itself exactly when the part of its mode is there.
	if set != 1 || !r.SameStorage(r) {
		return fmt.Errorf("record does not name storage of mode %q and nothing else", mode)
	}
	return nil
}

// Decode reads one entry strictly: an unknown field, a missing one, or anything
// behind the object is an error.
func Decode(data []byte) (Entry, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var e Entry
	if err := dec.Decode(&e); err != nil {
		return Entry{}, fmt.Errorf("decode: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Entry{}, errors.New("decode: data after the object")
	}
	if err := e.validate(); err != nil {
		return Entry{}, err
	}
	return e, nil
}

// Encode writes one entry as Decode reads it.
func Encode(e Entry) ([]byte, error) {
	e.SchemaVersion = SchemaVersion
	if err := e.validate(); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return append(data, '\n'), nil
}
