// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package lvm makes volumes of LVM's logical volumes: one volume group is one pool, and
// its volumes are linear, striped, or thin ones that share one thin pool. Thin volumes
// have snapshots and copies.
//
// # One process for many commands
//
// Starting lvm and letting it scan its devices costs more than what it then does,
// and so does waiting for udev after each volume. Backend therefore has a queue
// per volume group. Whatever waits while one lvm process runs is given to the next
// one together, as lines for lvm's own command shell ("lvm" without arguments),
// followed by two reports. One volume costs one process, and so do sixty.
//
// The reports are read from a descriptor of their own (LVM_REPORT_FD), apart from
// the shell's prompts. In the shell --reportformat json has no effect: the format
// is fixed when the shell starts, by lvm.conf or a profile on the host
// (report_format_init, called by lvm_shell in tools/lvm.c). So the reports are
// asked for as KEY='value' pairs (--nameprefixes), which is as strict to read.
//
// Commands do not wait for udev: lvm makes the nodes under /dev/mapper itself. A
// volume counts as made when the kernel shows a device with its device-mapper UUID,
// and that is looked at in sysfs.
//
// # What was done
//
// The outcome is read from the report at the end of the same process, never from
// an exit code or a message. Messages (stderr, in the C locale) only explain why
// something was not done; errors.go lists those that are understood, with the file
// of lvm2 that prints each. A report counts only if it is whole: lvm's own counts
// agree with its rows, and all rows are of one generation of the metadata. Without
// a whole report nothing is known, neither presence nor absence.
//
// How the group looked last is kept, and used as long as the generation number in
// the metadata on its disks is still the same. That is read from the disks
// directly, in a few microseconds, so an operator's change is noticed at once, and
// no event or timer is needed.
//
// # Identity
//
// A volume group is known by its UUID, a logical volume by its own UUID and its
// name, which is the ID of the volume. Names alone are never trusted: removals and
// activations select by the UUIDs of group and volume, so that lvm itself compares
// them at the moment it acts. What we made carries a tag (TagVolume, TagPool);
// what does not is neither grown nor removed.
//
// # Which devices lvm sees
//
// Commands on volumes see the devices of their pool and no other, so a foreign disk
// that has died cannot hang them, and a group of the same name on another disk
// does not exist for them. For that command alone a filter takes the place of the
// host's filter and devices file (--config, see onlyDevices for why not --devices).
// The host's global_filter stays in force.
//
// Commands that make, extend, find and remove groups see what the host's lvm.conf
// and devices file let lvm see. They must notice a name that is taken anywhere, and
// lvm then enters the new devices in the host's devices file by itself, so that its
// administrator's commands see the pool. Nothing in the host's configuration is
// changed by us.
//
// No command on devices is ever given --yes or --force. It runs apart from the
// shell with nothing on its standard input, and lvm takes the end of that for no.
//
// # What lvm is needed
//
// lvm2 2.03.12 or newer, built with a line editor as distributions build it. An
// older one does not know the setting use_devicesfile and ignores the restriction
// to the pool's devices, with a warning. The commands run in the host's namespaces
// (package hostexec).
package lvm
