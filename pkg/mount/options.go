// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// msNosymfollow is MS_NOSYMFOLLOW (Linux 5.10), which x/sys names only for statfs.
const msNosymfollow = 0x100

// mountFlag is what a word of mount(8) does to the flags of mount(2).
type mountFlag struct {
	set, clear uintptr
}

// mountFlags are the words that the kernel takes as flags. The rest goes to the
// filesystem as text.
var mountFlags = map[string]mountFlag{
	"ro":            {set: unix.MS_RDONLY},
	"rw":            {clear: unix.MS_RDONLY},
	"nosuid":        {set: unix.MS_NOSUID},
	"suid":          {clear: unix.MS_NOSUID},
	"nodev":         {set: unix.MS_NODEV},
	"dev":           {clear: unix.MS_NODEV},
	"noexec":        {set: unix.MS_NOEXEC},
	"exec":          {clear: unix.MS_NOEXEC},
	"sync":          {set: unix.MS_SYNCHRONOUS},
	"async":         {clear: unix.MS_SYNCHRONOUS},
	"dirsync":       {set: unix.MS_DIRSYNC},
	"noatime":       {set: unix.MS_NOATIME},
	"atime":         {clear: unix.MS_NOATIME},
	"nodiratime":    {set: unix.MS_NODIRATIME},
	"diratime":      {clear: unix.MS_NODIRATIME},
	"relatime":      {set: unix.MS_RELATIME},
	"norelatime":    {clear: unix.MS_RELATIME},
	"strictatime":   {set: unix.MS_STRICTATIME},
	"nostrictatime": {clear: unix.MS_STRICTATIME},
	"lazytime":      {set: unix.MS_LAZYTIME},
	"nolazytime":    {clear: unix.MS_LAZYTIME},
	"iversion":      {set: unix.MS_I_VERSION},
	"noiversion":    {clear: unix.MS_I_VERSION},
	"silent":        {set: unix.MS_SILENT},
	"loud":          {clear: unix.MS_SILENT},
	"nosymfollow":   {set: msNosymfollow},
	"symfollow":     {clear: msNosymfollow},
}

// perMount are the flags that belong to one mount point, so that a bind mount can
// have them of its own.
const perMount = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC |
	unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_RELATIME | unix.MS_STRICTATIME | msNosymfollow

// ignoredOptions mean something to mount(8) and fstab only.
var ignoredOptions = map[string]bool{
	"": true, "defaults": true, "_netdev": true, "nofail": true, "auto": true, "noauto": true,
}

// refusedOptions would make another mount than the one asked for.
var refusedOptions = map[string]bool{
	"bind": true, "rbind": true, "move": true, "remount": true, "loop": true,
	"shared": true, "rshared": true, "private": true, "rprivate": true, "slave": true, "rslave": true,
	"unbindable": true, "runbindable": true, "user": true, "users": true, "owner": true, "group": true,
}

// parsedOptions are mount options as mount(2) takes them.
type parsedOptions struct {
	flags uintptr
	data  string
}

// parseOptions reads options as a StorageClass has them: each may be several,
// separated by commas. Words and their order count as for mount(8). What nobody
// here knows is left to the filesystem, which refuses what it does not know.
// volume.ErrInvalid names the option that cannot be used.
func parseOptions(options []string) (parsedOptions, error) {
	var p parsedOptions
	var data []string
	for _, list := range options {
		for o := range strings.SplitSeq(list, ",") {
			o = strings.TrimSpace(o)
			name, _, _ := strings.Cut(o, "=")
			f, isFlag := mountFlags[o]
			switch {
			case ignoredOptions[o] || strings.HasPrefix(o, "x-") || strings.HasPrefix(o, "X-"):
			case isFlag:
				p.flags = p.flags&^f.clear | f.set
			case refusedOptions[name] || strings.ContainsAny(o, "\x00\n"):
				return parsedOptions{}, fmt.Errorf("%w: mount option %q cannot be used for a volume", volume.ErrInvalid, o)
			default:
				data = append(data, o)
			}
		}
	}
	p.data = strings.Join(data, ",")
	// mount(2) copies at most one page, terminator included, and cuts the rest.
	if len(p.data) >= os.Getpagesize() {
		return parsedOptions{}, fmt.Errorf("%w: mount options of %d bytes are too long", volume.ErrInvalid, len(p.data))
	}
	return p, nil
}

// CheckOptions reports whether options can be used to mount a filesystem, as far as
// that can be told without the filesystem. volume.ErrInvalid names the one that
// cannot.
func CheckOptions(options []string) error {
	_, err := parseOptions(options)
	return err
}

// ReadOnly reports whether options make a filesystem read-only.
func ReadOnly(options []string) bool {
	p, err := parseOptions(options)
	return err == nil && p.flags&unix.MS_RDONLY != 0
}
