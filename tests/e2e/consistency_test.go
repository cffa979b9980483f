// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

const groupSnapshotAPI = "groupsnapshot.storage.k8s.io/v1"

// ordersScript counts in one file and then in the other, as fast as it can: what was not
// copied at one instant is far apart.
const ordersScript = `i=0; while :; do i=$((i+1)); echo $i >>/data/first/log; echo $i >>/data/second/log; done`

// databasePaths are what a pod sees of its node to run the node's own databases.
var databasePaths = map[string]string{"/usr": "/usr", "/lib": "/usr/lib", "/lib64": "/usr/lib64", "/template": "/var/lib/postgresql/17/main"}

// What a database has acknowledged stands in the pod's log: outside of the volume.
const (
	sqliteScript = `set -e
/usr/bin/sqlite3 /data/sqlite/db 'pragma journal_mode=wal; pragma synchronous=full; create table t(id integer primary key, sum text)' >/dev/null
i=0; while :; do i=$((i+1)); echo "insert into t values($i, hex(randomblob(16))); select $i;"; done | /usr/bin/stdbuf -oL /usr/bin/sqlite3 -bail /data/sqlite/db
`
	sqliteAudit = `set -e
/usr/bin/sqlite3 /data/sqlite-restored/db 'pragma integrity_check; select count(*), max(id) from t' >/dev/termination-log
`
	postgresProlog = `set -e
mkdir -p /etc /tmp; echo 'postgres:x:70:70::/tmp:/bin/sh' >>/etc/passwd; echo 'postgres:x:70:' >>/etc/group
export PGHOST=/tmp PGUSER=postgres PGDATABASE=postgres LC_ALL=C
bin=/usr/lib/postgresql/17/bin
as() { /usr/bin/setpriv --reuid 70 --regid 70 --clear-groups "$@"; }
echo 'local all all trust' >/tmp/hba
serve() { as $bin/postgres -D "$1" -c config_file=/tmp/conf -c hba_file=/tmp/hba -c ident_file=/tmp/ident >/tmp/server.log 2>&1 & }
touch /tmp/conf /tmp/ident
printf 'listen_addresses = %s\nunix_socket_directories = %s\njit = off\nautovacuum = off\n' "''" "'/tmp'" >/tmp/conf
await() { n=0; until as $bin/psql -qAtc 'select 1' >/dev/null 2>&1; do n=$((n+1)); [ $n -lt 120 ] || { tail -c 2000 /tmp/server.log >/dev/termination-log; exit 1; }; sleep 0.5; done; }
`
	postgresScript = postgresProlog + `cp -a /template /data/postgres/db; chown -R 70:70 /data/postgres/db; chmod 700 /data/postgres/db
serve /data/postgres/db; await
as $bin/psql -qAtc 'create table t(id int primary key, sum text)'
i=0; while :; do i=$((i+1)); echo "insert into t values($i, md5($i::text)) returning id;"; done | as /usr/bin/stdbuf -oL $bin/psql -qAt -v ON_ERROR_STOP=1
`
	postgresAudit = postgresProlog + `rm -f /data/postgres-restored/db/postmaster.pid
serve /data/postgres-restored/db; await
as $bin/pg_amcheck --install-missing --heapallindexed postgres >/tmp/amcheck 2>&1 || { tail -c 2000 /tmp/amcheck >/dev/termination-log; exit 1; }
as $bin/psql -qAtc "select 'ok' union all select count(*) || '|' || max(id) from t" >/dev/termination-log
`
)

// Disks of the test's own: the pool of the other specs stays as it is. All that is slow goes
// on at once.
var _ = Describe("Snapshots of volumes that are written to", Label("pools", "groups", "databases", "long"), func() {
	It("hold several volumes at one instant, and databases with all that they acknowledged", func(ctx SpecContext) {
		needs(CanPlugDisks)
		needs(CanExec)
		node := suite.nodes[0]
		// So large that no claim of a whole disk, which gets the smallest that fits, gets it.
		disk := Disk{Serial: "E2E-GROUPS", SizeBytes: 8 << 30}
		plug(ctx, node, disk)
		awaitDisk(ctx, node, disk.Serial, "blank")
		set := &v1alpha1.PoolSet{
			ObjectMeta: metav1.ObjectMeta{Name: "e2e-groups"},
			Spec: v1alpha1.PoolSetSpec{
				Kind: v1alpha1.PoolLVM, NodeSelector: map[string]string{corev1.LabelHostname: node},
				DeviceSelector: &v1alpha1.DeviceSelector{Serials: []string{disk.Serial}}, Thin: &v1alpha1.ThinPool{OverprovisionRatio: "3"},
			},
		}
		pool := newPool(ctx, set, node)
		classes := map[string]string{}
		for _, fs := range []string{"ext4", "xfs"} {
			classes[fs] = newClass(ctx, map[string]string{"mode": "lvm", "pool": set.Name, "csi.storage.k8s.io/fstype": fs, "wipe": "none"})
		}
		space := newSpace(ctx)
		filesystems := map[string]string{"first": "ext4", "second": "xfs", "sqlite": "ext4", "postgres": "xfs"}
		restored := func(claim string) string { return claim + "-restored" }

		By("writing to four volumes")
		for claim, fs := range filesystems {
			object, err := space.CreateClaim(ctx, workload.Claim{Name: claim, Class: classes[fs], Size: "320Mi"})
			Expect(err).NotTo(HaveOccurred())
			if claim == "first" || claim == "second" {
				object.Labels = map[string]string{"app": "orders"}
				Expect(suite.client.Update(ctx, object)).To(Succeed())
			}
		}
		pods := map[string]*corev1.Pod{}
		for name, pod := range map[string]workload.Pod{
			"orders":   {Claims: []string{"first", "second"}, Script: ordersScript},
			"sqlite":   {Claims: []string{"sqlite"}, Script: sqliteScript, HostPaths: databasePaths},
			"postgres": {Claims: []string{"postgres"}, Script: postgresScript, HostPaths: databasePaths},
		} {
			pod.Name, pod.Node = name, node
			created, err := space.CreatePod(ctx, pod)
			Expect(err).NotTo(HaveOccurred())
			pods[name] = created
		}
		for name := range pods {
			_, err := space.AwaitPod(ctx, name, corev1.PodRunning)
			Expect(err).NotTo(HaveOccurred())
		}
		handles := map[string]string{}
		for claim := range filesystems {
			handles[volumeOf(ctx, boundVolume(ctx, space, claim)).Name] = claim
		}

		By("taking a group snapshot of two of them")
		group := takeGroupSnapshot(ctx, space, "together", map[string]any{"app": "orders"})
		sources := map[string]string{} // VolumeSnapshots, by claim
		var members []*v1alpha1.LocalSnapshot
		for _, s := range snapshotsOfGroup(ctx, space, "together", 2) {
			local := localSnapshotOf(ctx, s)
			Expect(local.Spec.Group).NotTo(BeNil())
			sources[handles[local.Spec.VolumeName]] = s.GetName()
			members = append(members, local)
		}
		Expect(sources).To(And(HaveKey("first"), HaveKey("second")))
		Expect(members[0].Status.CreationTime).To(Equal(members[1].Status.CreationTime))

		By("taking snapshots of the databases")
		acknowledged := map[string]int{}
		for _, name := range []string{"sqlite", "postgres"} {
			acknowledged[name] = awaitAcknowledged(ctx, node, pods[name], 20)
		}
		for name := range acknowledged {
			askForSnapshot(ctx, space, name, name)
		}
		for name := range acknowledged {
			awaitSnapshot(ctx, space, name)
			sources[name] = name
			AddReportEntry(fmt.Sprintf("%s had acknowledged %d rows", name, acknowledged[name]), ReportEntryVisibilityAlways)
		}

		By("restoring them, and looking at what they hold")
		for name := range pods { // They have done their part, and take the node's time.
			Expect(space.DeletePod(ctx, name)).To(Succeed())
		}
		snapshotGroup := "snapshot.storage.k8s.io"
		for claim, fs := range filesystems {
			_, err := space.CreateClaim(ctx, workload.Claim{
				Name: restored(claim), Class: classes[fs], Size: "320Mi",
				Source: &corev1.TypedLocalObjectReference{APIGroup: &snapshotGroup, Kind: "VolumeSnapshot", Name: sources[claim]},
			})
			Expect(err).NotTo(HaveOccurred())
		}
		audits := map[string]workload.Pod{
			"audit-orders": {
				Claims: []string{restored("first"), restored("second")},
				Script: `set -e; for f in first second; do wc -l </data/$f-restored/log; tail -n 1 /data/$f-restored/log; done >/dev/termination-log`,
			},
			"audit-sqlite":   {Claims: []string{restored("sqlite")}, Script: sqliteAudit, HostPaths: databasePaths},
			"audit-postgres": {Claims: []string{restored("postgres")}, Script: postgresAudit, HostPaths: databasePaths},
		}
		for name, pod := range audits {
			pod.Name = name
			_, err := space.CreatePod(ctx, pod)
			Expect(err).NotTo(HaveOccurred())
		}
		said := map[string]string{}
		for name := range audits {
			ended, err := space.AwaitPod(ctx, name, corev1.PodSucceeded)
			Expect(err).NotTo(HaveOccurred())
			said[name] = workload.TerminationMessage(ended)
			AddReportEntry(fmt.Sprintf("%s: %q", name, said[name]), ReportEntryVisibilityAlways)
		}
		orders := numbers(said["audit-orders"])
		Expect(orders).To(HaveLen(4))
		Expect(orders[0]).To(And(Equal(orders[1]), BeNumerically(">", 0)), "the lines of the first")
		Expect(orders[2]).To(Equal(orders[3]), "the lines of the second")
		Expect(orders[0]-orders[2]).To(And(BeNumerically(">=", 0), BeNumerically("<=", 1)), "the first is ahead of the second by")
		for name, least := range acknowledged {
			lines := strings.Fields(said["audit-"+name])
			Expect(lines).To(HaveLen(2), said["audit-"+name])
			Expect(lines[0]).To(Equal("ok"))
			rows := numbers(strings.ReplaceAll(lines[1], "|", " "))
			Expect(rows).To(HaveLen(2))
			Expect(rows[0]).To(Equal(rows[1]), "rows of %s, and the last one's number", name)
			Expect(rows[0]).To(BeNumerically(">=", least), "rows of %s, and those that it had acknowledged", name)
		}

		By("checking the filesystems")
		checks := map[string]*v1alpha1.LocalVolume{}
		for claim := range filesystems {
			checks[claim] = volumeOf(ctx, boundVolume(ctx, space, restored(claim)))
		}
		for _, pod := range []string{"audit-orders", "audit-sqlite", "audit-postgres"} {
			Expect(space.DeletePod(ctx, pod)).To(Succeed())
		}
		for claim, local := range checks {
			expectCleanFilesystem(ctx, node, local, filesystems[claim])
		}

		By("deleting the group, and all the rest")
		Expect(suite.client.Delete(ctx, group)).To(Succeed())
		for name := range acknowledged {
			Expect(suite.client.Delete(ctx, snapshotObject("VolumeSnapshot", space.Namespace, name))).To(Succeed())
		}
		for _, member := range members {
			Expect(space.Await(ctx, member, func(_ client.Object, gone bool) (bool, error) { return gone, nil })).To(Succeed())
		}
		for claim := range filesystems {
			for _, name := range []string{claim, restored(claim)} {
				Expect(suite.client.Delete(ctx, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: space.Namespace, Name: name}})).To(Succeed())
			}
		}
		Eventually(func(ctx context.Context) (string, error) {
			out, err := suite.hosts.Exec(ctx, node, "lvs --noheadings -o lv_name "+pool.Status.VGName)
			return strings.TrimSpace(out), err
		}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Equal("thin"), "volumes that are left")
		removePool(ctx, set, pool)
		awaitDisk(ctx, node, disk.Serial, "blank")
	}, SpecTimeout(4*patience))
})

func numbers(text string) []int {
	GinkgoHelper()
	var all []int
	for word := range strings.FieldsSeq(text) {
		n, err := strconv.Atoi(word)
		Expect(err).NotTo(HaveOccurred(), text)
		all = append(all, n)
	}
	return all
}

// awaitAcknowledged waits until a pod's log has so many lines, and returns the number in the
// last one that is whole.
func awaitAcknowledged(ctx context.Context, node string, pod *corev1.Pod, least int) int {
	GinkgoHelper()
	last := 0
	script := fmt.Sprintf("grep -E 'stdout F [0-9]+$' /var/log/pods/%s_%s_%s/main/0.log | tail -n 1 | sed 's/.* //'", pod.Namespace, pod.Name, pod.UID)
	Eventually(func(g Gomega, ctx context.Context) {
		out, err := suite.hosts.Exec(ctx, node, script)
		g.Expect(err).NotTo(HaveOccurred())
		last, err = strconv.Atoi(strings.TrimSpace(out))
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(last).To(BeNumerically(">=", least))
	}).WithContext(ctx).WithTimeout(2 * time.Minute).WithPolling(time.Second).Should(Succeed())
	return last
}

// takeGroupSnapshot takes a VolumeGroupSnapshot of the claims with these labels.
func takeGroupSnapshot(ctx context.Context, space *workload.Space, name string, labels map[string]any) *unstructured.Unstructured {
	GinkgoHelper()
	group := snapshotObject("VolumeGroupSnapshot", space.Namespace, name)
	group.SetAPIVersion(groupSnapshotAPI)
	group.Object["spec"] = map[string]any{
		"volumeGroupSnapshotClassName": "berth", "source": map[string]any{"selector": map[string]any{"matchLabels": labels}},
	}
	Expect(suite.client.Create(ctx, group)).To(Succeed())
	Expect(space.Await(ctx, group, func(object client.Object, _ bool) (bool, error) {
		ready, _, err := unstructured.NestedBool(object.(*unstructured.Unstructured).Object, "status", "readyToUse")
		return ready, err
	})).To(Succeed(), "the group snapshot to be ready")
	return group
}

// snapshotsOfGroup waits until the VolumeSnapshots of a group are ready, and returns them.
func snapshotsOfGroup(ctx context.Context, space *workload.Space, group string, wanted int) []unstructured.Unstructured {
	GinkgoHelper()
	var found []unstructured.Unstructured
	Eventually(func(g Gomega, ctx context.Context) {
		list := &unstructured.UnstructuredList{}
		list.SetAPIVersion(snapshotAPI)
		list.SetKind("VolumeSnapshotList")
		g.Expect(suite.client.List(ctx, list, client.InNamespace(space.Namespace))).To(Succeed())
		found = nil
		for _, s := range list.Items {
			of, _, _ := unstructured.NestedString(s.Object, "status", "volumeGroupSnapshotName")
			ready, _, _ := unstructured.NestedBool(s.Object, "status", "readyToUse")
			if of == group && ready {
				found = append(found, s)
			}
		}
		g.Expect(found).To(HaveLen(wanted))
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
	return found
}

// expectCleanFilesystem checks the filesystem of a volume that no pod has any more.
func expectCleanFilesystem(ctx context.Context, node string, local *v1alpha1.LocalVolume, fs string) {
	GinkgoHelper()
	check := map[string]string{"ext4": "e2fsck -fn", "xfs": "xfs_repair -n"}[fs]
	device := "/dev/" + local.Status.LVM.VGName + "/" + local.Status.LVM.LVName
	Eventually(func(ctx context.Context) error {
		out, err := suite.hosts.Exec(ctx, node, fmt.Sprintf("if grep -q %s /proc/mounts; then echo it is mounted; exit 1; fi; %s %s 2>&1",
			strings.ReplaceAll(local.Status.LVM.LVName, "-", "--"), check, device))
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(2*time.Second).Should(Succeed(), check)
}
