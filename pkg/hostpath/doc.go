// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hostpath is the backend that makes a volume of a directory under the
// root of a pool. It runs no program.
//
// # What is under a root
//
//	.berth/root.json           who owns the root: its ID and the pool's UID
//	.berth/volumes/<id>.json   what was promised to a volume
//	volumes/<id>/              the volume, mode 0777
//	named/<path>/              the volume, where it was asked for at a path of its own
//	.trash/<id>.<random>/      a deleted volume, being removed in the background
//	.berth/snapshots/<id>.json what was promised to a snapshot
//	.berth/qgroups/<number>    a subvolume that is being removed, whose quota group goes with it
//	snapshots/<id>/            the snapshot
//	.copies/<id>.<random>/     a copy that is being made
//
// and, where a deleted volume was to be kept for a while,
//
//	.retained/<id>.<random>/            what it held
//	.berth/retained/<id>.<random>.json  whose that was, and when it is removed
//	.berth/clock.json                   how long the root has been looked after
//	taken-back/<id>.<random>/           what an operator took back
//
// All of them but the volumes' own have mode 0700. A volume's own directory is writable
// for everybody, as users of local directories expect who run containers under
// any user without an fsGroup; nobody but root can reach it save through the
// mount in a pod, for its parent is closed.
//
// A root is known by its marker, root.json, and by the UUID of the filesystem that the marker
// says it was made on. Where the marker is missing, the filesystem that should be mounted there
// is not; where the UUID is another one, it is a copy. Nothing is read or written then.
//
// # Volumes at paths
//
// What is at a path is not always what was there, so a volume at one is known by its
// directory's inode and the time that that was made, which the promise says before anybody
// but root can open it. The directories above it are root's alone, are made with the first
// volume below them and go with the last. No volume lies in another one.
//
// # Directories that are adopted
//
// A directory that lies on the root's mount already becomes a volume by being renamed to
// where volumes are; nothing in it is read, written or changed but the project that its
// files are counted by. It is promised with its inode first, so that a killed call is taken
// up, and what lies there is the volume only if it is that directory. When the volume is
// deleted it is moved to taken-back, and never removed.
//
// # Crashes
//
// Creation writes the promise first and makes the directory second; deletion
// moves the directory into the trash first and removes the promise second. So a
// volume is what has a promise, with or without its directory; a directory
// without a promise is not ours. Each step is atomic and synced before the next.
//
// What is kept has a record before it is moved, and loses it after it has gone: into the
// trash when its time is over, or by whoever took it back. A record of what is nowhere
// means nothing. Nothing but the trash is ever removed, and what is kept is not in it: an
// older agent, which knows nothing of it, leaves it alone.
//
// # Copies
//
// A snapshot is the copy of a volume's tree, and so is a volume that is made of one or of
// another volume. Each file shares its blocks with the one it was copied of, where the
// filesystem has that (reflinks: xfs, btrfs). File by file is not one instant, so nothing is
// copied that somebody could write to meanwhile: the volume must not be mounted for writing.
//
// On a btrfs a new volume is a subvolume, and its copy is one that the kernel makes at one
// instant, whoever writes to it. Volumes that are none are copied file by file there, too.
//
// A copy has its promise first, like any volume, is made out of sight, and is renamed into its
// place when it is whole and durable. What a killed call has left out of sight goes into the
// trash; the promise without a directory is fulfilled by the next call, or dropped.
//
// # Limits
//
// Where the filesystem has quotas, a volume cannot hold more than its size: on xfs and ext4 by a
// project that its directory hands down to its files, on a btrfs by the quota group that its
// subvolume has, of which the promise says that it is limited. What is made where sizes are not
// enforced stays as it is.
//
// # Paths
//
// Every path is walked below an open root (os.Root), so that neither a symbolic
// link nor ".." leads out of it (I12). Where a link inside the root would do harm
// too, and for everything that pods can write to, openat2(2) refuses links and
// mount points altogether.
//
// # Erasing
//
// Deletion removes a volume's files, and the filesystem hands out no block that
// was not written to first. The wipe policies, which are about block devices,
// change nothing here.
package hostpath
