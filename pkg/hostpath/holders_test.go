// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"os"
	"path"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostpath"
)

// Who has a directory is seen in the mount namespaces of all processes.
func TestHolder(t *testing.T) {
	t.Parallel()
	const base = `22 1 253:0 / / rw - ext4 /dev/vda rw
41 22 253:16 / /srv/fast rw - xfs /dev/vdb rw
`
	for name, test := range map[string]struct {
		host, container, says string
	}{
		"nobody":                    {},
		"a volume of kind local":    {host: "50 22 253:16 /old/pvc /var/lib/kubelet/pods/1/volumes/x rw - xfs /dev/vdb rw\n", says: "mounted at /var/lib/kubelet/pods/1/volumes/x"},
		"a subPath":                 {host: "50 22 253:16 /old/pvc/db /var/lib/kubelet/pods/1/volume-subpaths/x rw - xfs /dev/vdb rw\n", says: "volume-subpaths"},
		"a mount in it":             {host: "50 41 0:99 / /srv/fast/old/pvc/db rw - tmpfs x rw\n", says: "something is mounted at /srv/fast/old/pvc/db"},
		"above it, on the host":     {host: "50 22 253:16 /old /mnt rw - xfs /dev/vdb rw\n", says: "a directory above it is mounted at /mnt"},
		"a hostPath in a container": {container: "9 8 253:16 /old/pvc /data rw - xfs /dev/vdb rw\n", says: "process 77 (postgres) has it mounted at /data"},
		"a subPath in a container":  {container: "9 8 253:16 /old/pvc/db /data rw - xfs /dev/vdb rw\n", says: "has it mounted at /data"},
		"above it, in a container":  {container: "9 8 253:16 /old /host rw - xfs /dev/vdb rw\n"},
		"the whole filesystem":      {host: "50 22 253:16 / /mnt rw - xfs /dev/vdb rw\n", container: "9 8 253:16 / /host rw - xfs /dev/vdb rw\n"},
		"another one":               {container: "9 8 253:16 /old/pvc2 /data rw - xfs /dev/vdb rw\n"},
		"on another filesystem":     {container: "9 8 253:0 /old/pvc /data rw - ext4 /dev/vda rw\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proc := t.TempDir()
			process := func(pid, namespace, root, comm, mounts string) {
				writeFile(t, path.Join(proc, pid, "mountinfo"), mounts)
				writeFile(t, path.Join(proc, pid, "comm"), comm+"\n")
				must(t, os.Mkdir(path.Join(proc, pid, "ns"), 0o755))
				must(t, os.Symlink("mnt:["+namespace+"]", path.Join(proc, pid, "ns/mnt")))
				must(t, os.Symlink(root, path.Join(proc, pid, "root")))
			}
			process("1", "1", "/", "systemd", base+test.host)
			process("70", "2", "/var/empty", "confined", "8 7 0:44 /var/empty / rw - overlay overlay rw\n")
			process("77", "2", "/", "postgres", "8 7 0:44 / / rw - overlay overlay rw\n"+test.container)
			process("78", "2", "/", "postgres", "damaged: not read, it is in the same namespace")
			must(t, os.Mkdir(path.Join(proc, "79"), 0o755)) // has ended
			must(t, os.Mkdir(path.Join(proc, "sys"), 0o755))
			got, err := hostpath.ProcessTable(proc).Holder("/srv/fast/old/pvc")
			if err != nil || (got == "") != (test.says == "") || !strings.Contains(got, test.says) {
				t.Errorf("Holder = %q, %v, want one that says %q", got, err, test.says)
			}
		})
	}
	if _, err := hostpath.ProcessTable(t.TempDir()).Holder("/srv"); err == nil {
		t.Error("without a mount table nobody has it")
	}
	if got := hostpath.HostProcesses("/host"); got != "/host/proc" {
		t.Errorf("the host's processes are looked for in %s", got)
	}
}

// The machine itself: a mount that only another process sees.
func TestHolderOfTheMachine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if got, err := hostpath.HostProcesses("").Holder(dir); err != nil || got != "" {
		t.Fatalf("Holder = %q, %v", got, err)
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	target := t.TempDir()
	if err := unix.Mount(dir, target, "", unix.MS_BIND, ""); err != nil {
		t.Skip("mounting: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	if got, err := hostpath.HostProcesses("").Holder(dir); err != nil || !strings.Contains(got, target) {
		t.Errorf("Holder = %q, %v, want one that names %s", got, err, target)
	}
}
