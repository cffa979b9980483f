// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

const (
	berthDir   = ".berth"
	promiseDir = ".berth/volumes"
	markerFile = ".berth/root.json"
	volumesDir = "volumes"
	trashDir   = ".trash"
	// What follows is made when it is needed first, so that older roots get it too.
	namedDir          = "named"
	retainedDir       = ".retained"
	takenBackDir      = "taken-back"
	retainedRecordDir = ".berth/retained"
	clockFile         = ".berth/clock.json"
	snapshotsDir      = "snapshots"
	snapshotRecordDir = ".berth/snapshots"
	copiesDir         = ".copies"
	groupsDir         = ".berth/qgroups"
)

// Where is a root on the host.
type Where struct {
	// Root is its absolute path on the host, without "..", and not "/".
	Root string
	// HostRoot is where this process sees the host's "/": "/proc/1/root" in a
	// container that shares the host's PIDs, empty on the host itself.
	HostRoot string
	// FilesystemUUID returns the UUID of the filesystem that an open directory is on, empty when
	// it has none that lasts. Nil means that the kernel is asked.
	FilesystemUUID func(dir int) (string, error)
}

// marker says whose root it is.
type marker struct {
	RootID  string    `json:"rootID"`
	PoolUID string    `json:"poolUID"`
	Created time.Time `json:"created"`
	// FilesystemUUID is of the filesystem that the root was made on; empty where that was not
	// known, as for roots of older agents.
	FilesystemUUID string `json:"filesystemUUID,omitempty"`
}

// Init makes the root of a pool that was never initialised and returns the ID in
// its marker. The caller records the ID, gives it to New, and never calls Init for
// that pool again: where the marker of an initialised root is missing, its
// filesystem is not mounted, and Init would make a second root below the mount
// point. Repeated before the ID was recorded, it returns the same ID.
//
// The path is made if it is not there. ErrInvalid: it is relative, "/", or a
// symbolic link. ErrExists: the root belongs to another pool. ErrNotBlank: it
// holds something that we did not make. ErrIdentity: the root was made on another
// filesystem. Nothing was changed then.
func Init(ctx context.Context, where Where, poolUID string) (rootID string, err error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if poolUID == "" {
		return "", fmt.Errorf("initialise root %s: %w: the pool's UID is empty", where.Root, volume.ErrInvalid)
	}
	rootID, err = initRoot(where, poolUID)
	if err != nil {
		return "", fmt.Errorf("initialise root %s: %w", where.Root, err)
	}
	return rootID, nil
}

func initRoot(where Where, poolUID string) (string, error) {
	if err := makeRoot(where); err != nil {
		return "", err
	}
	root, err := openRoot(where)
	if err != nil {
		return "", err
	}
	defer closeRoot(root)
	switch have, err := readMarker(root); {
	case err == nil && have.PoolUID == poolUID:
		return have.RootID, where.requireFilesystem(root, have)
	case err == nil:
		return "", fmt.Errorf("%w: it belongs to the pool with UID %s; choose another path", volume.ErrExists, have.PoolUID)
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	uuid, err := where.filesystemOf(root)
	if err != nil {
		return "", err
	}
	if err := requireBlank(root); err != nil {
		return "", err
	}
	for _, dir := range []string{berthDir, promiseDir, volumesDir, trashDir} {
		if err := root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	for _, dir := range []string{berthDir, "."} {
		if err := syncDir(root, dir); err != nil {
			return "", err
		}
	}
	// The marker comes last: with it, everything is there.
	m := marker{RootID: strings.ToLower(rand.Text()), PoolUID: poolUID, Created: time.Now().UTC().Truncate(time.Second), FilesystemUUID: uuid}
	if err := writeFile(root, markerFile, m); err != nil {
		return "", err
	}
	if err := root.Rename(markerFile+tmpSuffix, markerFile); err != nil {
		return "", err
	}
	return m.RootID, syncDir(root, berthDir)
}

// makeRoot makes the directories of the path that are missing.
func makeRoot(where Where) error {
	host, rel, err := openHost(where)
	if err != nil {
		return err
	}
	defer closeRoot(host)
	if _, err := host.Lstat(rel); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return host.MkdirAll(rel, 0o755)
}

// openHost opens the host's "/" and returns the root's path below it.
func openHost(where Where) (*os.Root, string, error) {
	if !path.IsAbs(where.Root) || path.Clean(where.Root) != where.Root || where.Root == "/" {
		return nil, "", fmt.Errorf("%w: %q must be an absolute path without '..', and not '/'", volume.ErrInvalid, where.Root)
	}
	hostRoot := where.HostRoot
	if hostRoot == "" {
		hostRoot = "/"
	}
	host, err := os.OpenRoot(hostRoot)
	if err != nil {
		return nil, "", fmt.Errorf("open the host's root directory: %w", err)
	}
	return host, strings.TrimPrefix(where.Root, "/"), nil
}

// openRoot opens the root, whatever is in it. ErrInvalid when it is no directory.
func openRoot(where Where) (*os.Root, error) {
	host, rel, err := openHost(where)
	if err != nil {
		return nil, err
	}
	defer closeRoot(host)
	info, err := host.Lstat(rel)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%w: it is a %s and must be a directory, not a link to one", volume.ErrInvalid, kind(info))
	}
	root, err := host.OpenRoot(rel)
	if err != nil {
		return nil, err
	}
	opened, err := root.Stat(".")
	if err == nil && !os.SameFile(info, opened) {
		err = fmt.Errorf("%w: it was replaced while it was opened", volume.ErrIdentity)
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// maxLinks is how many links a path may lead over, as for the kernel.
const maxLinks = 40

// unlinked returns the root's path without the links that are above it, as the host's mount table
// has it.
func (w Where) unlinked() (string, error) {
	host, rel, err := openHost(w)
	if err != nil {
		return "", err
	}
	defer closeRoot(host)
	at, links := ".", 0
	for left := strings.Split(rel, "/"); len(left) > 0; {
		next := path.Join(at, left[0])
		left = left[1:]
		target, err := host.Readlink(next)
		switch {
		case errors.Is(err, unix.EINVAL):
			at = next
		case err != nil:
			return "", err
		default:
			if links++; links > maxLinks {
				return "", fmt.Errorf("follow the links in %s: %w", w.Root, unix.ELOOP)
			}
			// One that begins at "/" is refused where the root is opened.
			left = append(strings.Split(target, "/"), left...)
		}
	}
	return path.Join("/", at), nil
}

func readMarker(root *os.Root) (marker, error) {
	data, err := root.ReadFile(markerFile)
	if err != nil {
		return marker{}, err
	}
	var m marker
	if err := json.Unmarshal(data, &m); err != nil {
		return marker{}, fmt.Errorf("read %s: %w", markerFile, err)
	}
	if m.RootID == "" || m.PoolUID == "" {
		return marker{}, fmt.Errorf("read %s: it names no root or no pool", markerFile)
	}
	return m, nil
}

// requireBlank returns ErrNotBlank unless the root is empty, save for what every
// new ext4 has and for what an Init that was cut off has made.
func requireBlank(root *os.Root) error {
	for dir, allowed := range map[string][]string{
		".":        {"lost+found", berthDir, volumesDir, trashDir},
		berthDir:   {"volumes", path.Base(markerFile) + tmpSuffix},
		promiseDir: nil,
		volumesDir: nil,
		trashDir:   nil,
	} {
		names, err := readNames(root, dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if !slices.Contains(allowed, name) {
				return fmt.Errorf("%w: it holds %q; a new pool needs an empty directory", volume.ErrNotBlank, path.Join(dir, name))
			}
		}
	}
	return nil
}

func kind(info fs.FileInfo) string {
	switch {
	case info.IsDir():
		return "directory"
	case info.Mode()&fs.ModeSymlink != 0:
		return "symbolic link"
	case info.Mode().IsRegular():
		return "file"
	}
	return "special file"
}
