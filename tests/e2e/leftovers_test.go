// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// holdings is what one node holds of Berth's, seen with the host's own tools.
type holdings struct {
	logicalVolumes []string
	directories    []string
	ledger         []string
	mounts         []string
}

// lookAt lists a node's holdings without asking Berth.
func lookAt(ctx context.Context, node string) (holdings, error) {
	out, err := suite.hosts.Exec(ctx, node, `set -e
if command -v lvs >/dev/null; then
  volumes=$(lvs --noheadings -o lv_name,vg_tags)
  echo "$volumes" | while read n tags; do case $tags in *berth.dev*) echo "lv $n" ;; esac; done
fi
for d in /var/lib/berth-volumes/volumes/*; do [ -d "$d" ] && echo "dir ${d##*/}"; done
for f in /var/lib/berth/ledger/*.json; do [ -e "$f" ] && echo "ledger ${f##*/}"; done
grep 'kubernetes.io/csi/berth.dev\|volumes/kubernetes.io~csi' /proc/mounts | while read s t rest; do echo "mount $t"; done
true`)
	if err != nil {
		return holdings{}, err
	}
	var found holdings
	for line := range strings.Lines(out) {
		what, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch what {
		case "lv":
			found.logicalVolumes = append(found.logicalVolumes, strings.TrimSpace(name))
		case "dir":
			found.directories = append(found.directories, name)
		case "ledger":
			found.ledger = append(found.ledger, strings.TrimSuffix(name, ".json"))
		case "mount":
			found.mounts = append(found.mounts, name)
		}
	}
	return found, nil
}

// expectNothingLeft compares, on every node, what the API says with what is
// there: each LocalVolume once, nothing without a LocalVolume, no claimed disk
// without its holder, no LocalVolume without its PersistentVolume.
func expectNothingLeft(ctx context.Context) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		volumes := &v1alpha1.LocalVolumeList{}
		g.Expect(suite.client.List(ctx, volumes)).To(Succeed())
		persistent := &corev1.PersistentVolumeList{}
		g.Expect(suite.client.List(ctx, persistent)).To(Succeed())
		handles := map[string]int{}
		for _, volume := range persistent.Items {
			if volume.Spec.CSI != nil && volume.Spec.CSI.Driver == v1alpha1.DriverName {
				handles[volume.Spec.CSI.VolumeHandle]++
			}
		}
		uids := map[string]v1alpha1.LocalVolume{}
		for _, volume := range volumes.Items {
			g.Expect(handles[volume.Name]).To(Equal(1), "PersistentVolumes of LocalVolume %s", volume.Name)
			uids[string(volume.UID)] = volume
		}
		g.Expect(handles).To(HaveLen(len(volumes.Items)), "PersistentVolumes without a LocalVolume")

		devices := &v1alpha1.BlockDeviceList{}
		g.Expect(suite.client.List(ctx, devices)).To(Succeed())
		claimed := map[string]int{}
		for _, device := range devices.Items {
			ref := device.Spec.ClaimRef
			if ref != nil && ref.Kind == "LocalVolume" {
				claimed[string(ref.UID)]++
				g.Expect(uids).To(HaveKey(string(ref.UID)), "holder of %s on %s", device.Status.Path, device.Spec.NodeName)
			}
			g.Expect(device.Status.ClaimState).NotTo(Equal(v1alpha1.ClaimStateReleased), "%s on %s is still being wiped", device.Status.Path, device.Spec.NodeName)
		}
		if !suite.description.Has(CanExec) {
			return
		}
		for _, node := range suite.nodes {
			found, err := lookAt(ctx, node)
			g.Expect(err).NotTo(HaveOccurred())
			var logical, directories, ledger []string
			for uid, volume := range uids {
				if volume.Spec.NodeName != node {
					continue
				}
				ledger = append(ledger, uid)
				switch volume.Spec.Mode {
				case v1alpha1.ModeLVM:
					logical = append(logical, uid)
				case v1alpha1.ModeHostpath:
					directories = append(directories, uid)
				case v1alpha1.ModeDevice:
					g.Expect(claimed[uid]).To(Equal(1), "disks of LocalVolume %s", volume.Name)
				}
			}
			g.Expect(sorted(found.logicalVolumes)).To(Equal(sorted(logical)), "logical volumes on %s", node)
			g.Expect(sorted(found.directories)).To(Equal(sorted(directories)), "directories on %s", node)
			g.Expect(sorted(found.ledger)).To(Equal(sorted(ledger)), "ledger of %s", node)
		}
	}).WithContext(ctx).WithTimeout(patience).WithPolling(2 * time.Second).Should(Succeed())
}

// expectHeld sees a volume where it is. It is the proof that what expectGone and
// expectNothingLeft look at would show one.
func expectHeld(ctx context.Context, volume *v1alpha1.LocalVolume) {
	GinkgoHelper()
	if !suite.description.Has(CanExec) {
		return
	}
	found, err := lookAt(ctx, volume.Spec.NodeName)
	Expect(err).NotTo(HaveOccurred())
	uid := string(volume.UID)
	Expect(found.ledger).To(ContainElement(uid), "ledger of %s", volume.Spec.NodeName)
	switch volume.Spec.Mode {
	case v1alpha1.ModeLVM:
		Expect(found.logicalVolumes).To(ContainElement(uid), "logical volumes on %s", volume.Spec.NodeName)
	case v1alpha1.ModeHostpath:
		Expect(found.directories).To(ContainElement(uid), "directories on %s", volume.Spec.NodeName)
	}
}

// expectGone waits until nothing of one volume is anywhere: no object, no claimed
// disk, nothing on any node. Unlike expectNothingLeft it does not mind what other
// specs make meanwhile.
func expectGone(ctx context.Context, volume *v1alpha1.LocalVolume) {
	GinkgoHelper()
	uid := string(volume.UID)
	Eventually(func(g Gomega, ctx context.Context) {
		err := suite.client.Get(ctx, client.ObjectKeyFromObject(volume), &v1alpha1.LocalVolume{})
		g.Expect(apierrors.IsNotFound(err)).To(BeTrue(), "LocalVolume %s: %v", volume.Name, err)
		devices := &v1alpha1.BlockDeviceList{}
		g.Expect(suite.client.List(ctx, devices)).To(Succeed())
		for _, device := range devices.Items {
			ref := device.Spec.ClaimRef
			g.Expect(ref == nil || string(ref.UID) != uid).To(BeTrue(), "%s on %s is still claimed", device.Status.Path, device.Spec.NodeName)
		}
		if !suite.description.Has(CanExec) {
			return
		}
		for _, node := range suite.nodes {
			found, err := lookAt(ctx, node)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(found.logicalVolumes).NotTo(ContainElement(uid), "logical volumes on %s", node)
			g.Expect(found.directories).NotTo(ContainElement(uid), "directories on %s", node)
			g.Expect(found.ledger).NotTo(ContainElement(uid), "ledger of %s", node)
			g.Expect(found.mounts).NotTo(ContainElement(ContainSubstring(volume.Name)), "mounts on %s", node)
		}
	}).WithContext(ctx).WithTimeout(patience).WithPolling(2 * time.Second).Should(Succeed())
}

func sorted(names []string) []string {
	out := append([]string{}, names...)
	slices.Sort(out)
	return out
}
