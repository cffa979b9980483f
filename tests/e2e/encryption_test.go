// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// markedScript writes a line that can be looked for into each of the three volumes, a journal
// into the first, and goes on with that.
const markedScript = `set -e
for file in /data/files/marked /data/whole/marked; do yes %[1]s | head -c 65536 >$file; done
yes %[1]s | head -c 65536 | dd of=/dev/claims/raw conv=fsync 2>/dev/null
sync
i=0; while :; do i=$((i+1)); echo "$i $(echo "$i" | sha256sum | cut -c1-16)" >>/data/files/journal; sync; done`

// newKey makes the Secret of encrypted volumes, and what classes of them say of it.
func newKey(ctx context.Context, space *workload.Space, passphrase string) (*corev1.Secret, map[string]string) {
	GinkgoHelper()
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "volume-key", Namespace: space.Namespace},
		StringData: map[string]string{"passphrase": passphrase},
	}
	Expect(suite.client.Create(ctx, secret)).To(Succeed())
	return secret, map[string]string{
		"encryption": "luks2",
		"csi.storage.k8s.io/node-stage-secret-name":      secret.Name,
		"csi.storage.k8s.io/node-stage-secret-namespace": "${pvc.namespace}",
	}
}

var _ = Describe("An encrypted volume", Label("encryption"), func() {
	It("is noise on its disk, and is opened by its passphrase and by no other", func(ctx SpecContext) {
		needs(CanExec)
		node, space := suite.nodes[0], newSpace(ctx)
		secret, parameters := newKey(ctx, space, "the right one")
		parameters["mode"], parameters["pool"], parameters["wipe"] = "lvm", suite.description.LVMPool, "none"
		class := newClass(ctx, parameters)
		files := kind{name: "lvm, encrypted", class: func(Classes) string { return class }, size: "64Mi"}
		_, err := space.CreateClaim(ctx, files.claim("files"))
		Expect(err).NotTo(HaveOccurred())
		const marker = "nobody-else-may-read-this"
		writer := files.with(workload.Pod{Name: "writer", Node: node, Script: files.writeScript("files") +
			fmt.Sprintf("yes %s | head -c 65536 >%s.marked; sync", marker, files.place("files"))}, "files")
		written, _, err := space.RunPod(ctx, writer)
		Expect(err).NotTo(HaveOccurred())
		local := sealedVolume(ctx, boundVolume(ctx, space, "files"))
		storage := "/dev/" + local.Status.LVM.VGName + "/" + local.Status.LVM.LVName
		found := execOn(ctx, node, fmt.Sprintf(`sync; blockdev --flushbufs %[2]s; grep -c %[1]s %[2]s; head -c 4 %[2]s`, marker, storage))
		Expect(strings.Fields(found)).To(Equal([]string{"0", "LUKS"}), "lines on the storage, and how it begins")
		Expect(space.DeletePod(ctx, writer.Name)).To(Succeed())
		Eventually(func(ctx context.Context) (string, error) {
			return suite.hosts.Exec(ctx, node, "ls /dev/mapper")
		}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).ShouldNot(ContainSubstring("berth-"+string(local.UID)), "it is closed when nobody uses it")

		setSecret(ctx, secret, map[string]string{"passphrase": "a wrong one"})
		locked, err := space.CreatePod(ctx, files.with(workload.Pod{Name: "reader", Node: node, Script: files.readScript("files")}, "files"))
		Expect(err).NotTo(HaveOccurred())
		expectTold(ctx, space, locked, []string{`the "passphrase" of the Secret does not open it`, `no "passphrase-previous"`})
		setSecret(ctx, secret, map[string]string{"passphrase": "the right one"})
		reader, err := space.AwaitPod(ctx, "reader", corev1.PodSucceeded, corev1.PodFailed)
		Expect(err).NotTo(HaveOccurred())
		Expect(workload.TerminationMessage(reader)).To(Equal(written))
		Expect(space.DeletePod(ctx, "reader")).To(Succeed())
		volume := boundVolume(ctx, space, "files")
		Expect(space.DeleteClaim(ctx, "files")).To(Succeed())
		Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
	}, SpecTimeout(2*patience))
})

// Long: each of its some twenty key derivations takes several seconds where the processor is
// emulated.
var _ = Describe("Encrypted volumes", Label("encryption", "long"), Serial, func() {
	It("keep their content from the disk, grow, are copied, get another passphrase, and lose their keys first", func(ctx SpecContext) {
		needs(CanPlugDisks)
		needs(CanExec)
		const marker = "nobody-else-may-read-this"
		node := suite.nodes[0]
		thin, whole := Disk{Serial: "E2E-LUKS-THIN", SizeBytes: 1000 << 20}, Disk{Serial: "E2E-LUKS-WHOLE", SizeBytes: 128 << 20}
		for _, disk := range []Disk{thin, whole} {
			plug(ctx, node, disk)
			awaitDisk(ctx, node, disk.Serial, "blank")
		}
		set := &v1alpha1.PoolSet{
			ObjectMeta: metav1.ObjectMeta{Name: "e2e-luks"},
			Spec: v1alpha1.PoolSetSpec{
				Kind: v1alpha1.PoolLVM, NodeSelector: map[string]string{corev1.LabelHostname: node},
				DeviceSelector: &v1alpha1.DeviceSelector{Serials: []string{thin.Serial}},
				Thin:           &v1alpha1.ThinPool{OverprovisionRatio: "4"},
			},
		}
		pool := newPool(ctx, set, node)
		space := newSpace(ctx)
		secret, key := newKey(ctx, space, "the first")
		encrypted := func(parameters map[string]string) string {
			maps.Copy(parameters, key)
			return newClass(ctx, parameters)
		}
		class := encrypted(map[string]string{"mode": "lvm", "pool": set.Name, "wipe": "none"})
		disks := encrypted(map[string]string{"mode": "device", "wipe": "none", "deviceSelector": "serials: [" + whole.Serial + "]"})

		By("using a filesystem, a block device and a whole disk in one pod")
		for _, claim := range []workload.Claim{
			{Name: "files", Class: class, Size: "96Mi"},
			{Name: "raw", Class: class, Size: "64Mi", Block: true},
			{Name: "whole", Class: disks, Size: "64Mi"},
		} {
			_, err := space.CreateClaim(ctx, claim)
			Expect(err).NotTo(HaveOccurred())
		}
		user := workload.Pod{Name: "user", Node: node, Claims: []string{"files", "whole"}, Devices: []string{"raw"}, Script: fmt.Sprintf(markedScript, marker)}
		_, err := space.CreatePod(ctx, user)
		Expect(err).NotTo(HaveOccurred())
		_, err = space.AwaitPod(ctx, user.Name, corev1.PodRunning)
		Expect(err).NotTo(HaveOccurred())
		volumes := map[string]*v1alpha1.LocalVolume{}
		for name, least := range map[string]int64{"files": 96 << 20, "raw": 64 << 20, "whole": 64 << 20} {
			local := sealedVolume(ctx, boundVolume(ctx, space, name))
			Expect(local.Status.Capacity.Value()).To(BeNumerically(">=", least))
			Expect(local.Status.Encryption.KeyGeneration).To(BeEquivalentTo(1))
			volumes[name] = local
		}
		storage := map[string]string{
			"files": "/dev/" + volumes["files"].Status.LVM.VGName + "/" + volumes["files"].Status.LVM.LVName,
			"raw":   "/dev/" + volumes["raw"].Status.LVM.VGName + "/" + volumes["raw"].Status.LVM.LVName,
			"whole": strings.TrimSpace(execOn(ctx, node, "readlink -f /dev/disk/by-id/*"+whole.Serial)),
		}
		awaitJournal(ctx, node, volumes["files"], 2)
		for name, path := range storage {
			found := execOn(ctx, node, fmt.Sprintf(`sync; blockdev --flushbufs %[2]s; grep -c %[1]s %[2]s; grep -c %[1]s %[3]s; head -c 4 %[2]s`, marker, path, opened(volumes[name])))
			lines := strings.Fields(found)
			Expect(lines).To(HaveLen(3), found)
			Expect(lines[0]).To(Equal("0"), "lines of %s on its storage", name)
			Expect(lines[1]).NotTo(Equal("0"), "lines of %s behind its header", name)
			Expect(lines[2]).To(Equal("LUKS"))
		}

		By("growing two of them, beside an agent that was killed")
		killAgent(ctx, node)
		for _, name := range []string{"files", "raw"} {
			growClaim(ctx, space, name, "160Mi")
		}
		Eventually(func(ctx context.Context) (string, error) {
			return suite.hosts.Exec(ctx, node, fmt.Sprintf(`blockdev --getsize64 %s; df -B1 --output=size %s | tail -1`, opened(volumes["raw"]), opened(volumes["files"])))
		}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(WithTransform(counts,
			HaveExactElements(BeNumerically(">=", 160<<20), BeNumerically(">=", 140<<20))))

		By("taking a snapshot while it is written to, and restoring it")
		takeSnapshot(ctx, space, "monday", "files")
		group := "snapshot.storage.k8s.io"
		from := &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: "monday"}
		_, err = space.CreateClaim(ctx, workload.Claim{Name: "restored", Class: class, Size: "160Mi", Source: from})
		Expect(err).NotTo(HaveOccurred())
		lines, _, err := space.RunPod(ctx, workload.Pod{Name: "auditor", Claims: []string{"restored"}, Script: fmt.Sprintf(auditScript, "/data/restored")})
		Expect(err).NotTo(HaveOccurred())
		Expect(strings.TrimSpace(lines)).NotTo(BeElementOf("", "0"))

		By("giving another passphrase, without and with the previous one")
		for _, pod := range []string{"auditor", "user"} {
			Expect(space.DeletePod(ctx, pod)).To(Succeed())
		}
		Eventually(func(ctx context.Context) (string, error) {
			return suite.hosts.Exec(ctx, node, "ls /dev/mapper")
		}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).ShouldNot(ContainSubstring("berth-"+string(volumes["files"].UID)), "it is closed when nobody uses it")
		setSecret(ctx, secret, map[string]string{"passphrase": "the second"})
		locked, err := space.CreatePod(ctx, workload.Pod{Name: "reader", Node: node, Claims: []string{"files"}, Script: fmt.Sprintf(auditScript, "/data/files")})
		Expect(err).NotTo(HaveOccurred())
		expectTold(ctx, space, locked, []string{`the "passphrase" of the Secret does not open it`, `no "passphrase-previous"`})
		setSecret(ctx, secret, map[string]string{"passphrase": "the second", "passphrase-previous": "the first"})
		reader, err := space.AwaitPod(ctx, "reader", corev1.PodSucceeded, corev1.PodFailed)
		Expect(err).NotTo(HaveOccurred())
		Expect(reader.Status.Phase).To(Equal(corev1.PodSucceeded), workload.TerminationMessage(reader))
		Eventually(func(g Gomega, ctx context.Context) {
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(volumes["files"]), volumes["files"])).To(Succeed())
			g.Expect(volumes["files"].Status.Encryption.KeyGeneration).To(BeEquivalentTo(2))
		}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
		tries := execOn(ctx, node, fmt.Sprintf(`for key in "the first" "the second"; do printf '%%s' "$key" | cryptsetup open --test-passphrase --key-file - %s >/dev/null 2>&1; echo $?; done`, storage["files"]))
		Expect(strings.Fields(tries)).To(Equal([]string{"2", "0"}), "what the first and the second passphrase open")
		Expect(space.DeletePod(ctx, "reader")).To(Succeed())

		By("deleting them")
		gone := []*corev1.PersistentVolume{}
		for _, claim := range []string{"files", "raw", "whole", "restored"} {
			gone = append(gone, boundVolume(ctx, space, claim))
			Expect(space.DeleteClaim(ctx, claim)).To(Succeed())
		}
		for _, volume := range gone {
			Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
		}
		awaitDisk(ctx, node, whole.Serial, "given back")
		left := execOn(ctx, node, fmt.Sprintf(`blockdev --flushbufs %[1]s; cryptsetup isLuks %[1]s; echo $?; head -c 32768 %[1]s | grep -c -a -e LUKS -e SKUL; ls /dev/mapper | grep -c '^berth-[0-9a-f]'; true`, storage["whole"]))
		Expect(strings.Fields(left)).To(Equal([]string{"1", "0", "0"}), "header of a volume that is deleted without a wipe, and what is open")
		execOn(ctx, node, fmt.Sprintf("dd if=/dev/zero of=%s bs=1M count=128 conv=fsync 2>/dev/null; true", storage["whole"]))
		awaitDisk(ctx, node, whole.Serial, "blank")
		Expect(space.Delete(ctx, snapshotObject("VolumeSnapshot", space.Namespace, "monday"))).To(Succeed())
		Eventually(func(ctx context.Context) (string, error) {
			out, err := suite.hosts.Exec(ctx, node, "lvs --noheadings -o lv_name "+volumes["files"].Status.LVM.VGName)
			return strings.TrimSpace(out), err
		}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Equal("thin"))
		removePool(ctx, set, pool)
		awaitDisk(ctx, node, thin.Serial, "blank")
	}, SpecTimeout(3*patience))
})

// sealedVolume is the LocalVolume behind a PersistentVolume that a pod has used.
func sealedVolume(ctx context.Context, volume *corev1.PersistentVolume) *v1alpha1.LocalVolume {
	GinkgoHelper()
	local := volumeOf(ctx, volume)
	Eventually(func(g Gomega, ctx context.Context) {
		g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(local), local)).To(Succeed())
		g.Expect(local.Status.Encryption).NotTo(BeNil())
		g.Expect(local.Status.Encryption.State).To(Equal(v1alpha1.EncryptionSealed))
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
	return local
}

// opened is where an encrypted volume is read on its node.
func opened(local *v1alpha1.LocalVolume) string { return "/dev/mapper/berth-" + string(local.UID) }

// awaitJournal waits until the journal of an encrypted volume has so many lines.
func awaitJournal(ctx context.Context, node string, local *v1alpha1.LocalVolume, least int) {
	GinkgoHelper()
	Eventually(func(ctx context.Context) ([]int64, error) {
		out, err := suite.hosts.Exec(ctx, node, fmt.Sprintf(`cat $(grep '^%s ' /proc/mounts | head -1 | cut -d' ' -f2)/journal 2>/dev/null | wc -l`, opened(local)))
		return counts(out), err
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(HaveExactElements(BeNumerically(">=", least)))
}

func counts(text string) (found []int64) {
	for word := range strings.FieldsSeq(text) {
		var n int64
		if _, err := fmt.Sscan(word, &n); err == nil {
			found = append(found, n)
		}
	}
	return found
}

// growClaim asks for more of a claim.
func growClaim(ctx context.Context, space *workload.Space, name, size string) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		claim := &corev1.PersistentVolumeClaim{}
		g.Expect(suite.client.Get(ctx, client.ObjectKey{Namespace: space.Namespace, Name: name}, claim)).To(Succeed())
		claim.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse(size)
		g.Expect(suite.client.Update(ctx, claim)).To(Succeed())
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
}

// setSecret replaces what a Secret holds.
func setSecret(ctx context.Context, secret *corev1.Secret, data map[string]string) {
	GinkgoHelper()
	secret.Data, secret.StringData = nil, data
	Expect(suite.client.Update(ctx, secret)).To(Succeed())
}
