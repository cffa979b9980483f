// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// Eight workers do to volumes of one pool what comes to their minds, and write down what
// there must be. In the end that, the objects, lvm, the content and the mounts are compared.
//
// Claims are bound without pods, and their first bytes are written and read with the host's
// own tools: so there can be hundreds of operations, which pods would make a matter of hours.
var _ = Describe("Random operations", Label("random", "long"), Serial, func() {
	It("by many at once leave what each of them was told", func(ctx SpecContext) {
		needs(CanPlugDisks, CanExec)
		node := suite.nodes[0]
		disk := Disk{Serial: "E2E-RANDOM", SizeBytes: 8 << 30}
		plug(ctx, node, disk)
		awaitDisk(ctx, node, disk.Serial, "blank")
		set := &v1alpha1.PoolSet{
			ObjectMeta: metav1.ObjectMeta{Name: "e2e-random"},
			Spec: v1alpha1.PoolSetSpec{
				Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{Serials: []string{disk.Serial}}, Thin: &v1alpha1.ThinPool{OverprovisionRatio: "8"},
			},
		}
		pool := newPool(ctx, set, node)
		class := newClass(ctx, map[string]string{"mode": "lvm", "pool": set.Name, "wipe": "discard"})
		space := newSpace(ctx)

		const workers = 8
		var done atomic.Int64
		operators := make([]*operator, workers)
		group, working := errgroup.WithContext(ctx)
		began := time.Now()
		for i := range operators {
			o := &operator{space: space, node: node, class: class, name: string(rune('a' + i)), random: rand.New(rand.NewPCG(uint64(GinkgoRandomSeed()), uint64(i))), volumes: map[string]*copied{}, snapshots: map[string]*copied{}}
			operators[i] = o
			group.Go(func() error {
				for done.Add(1) <= int64(options.operations) {
					if err := o.act(working); err != nil {
						return err
					}
				}
				return nil
			})
		}
		Expect(group.Wait()).To(Succeed())
		AddReportEntry("random operations", fmt.Sprintf("%d by %d workers in %s", options.operations, workers, time.Since(began).Round(time.Second)), ReportEntryVisibilityAlways)

		By("comparing what there is with what there must be")
		volumes, snapshots := map[string]*copied{}, map[string]*copied{}
		for _, o := range operators {
			maps.Copy(volumes, o.volumes)
			maps.Copy(snapshots, o.snapshots)
		}
		reader := workload.Pod{Name: "reader", Node: node}
		var expected strings.Builder
		locals := map[string]*v1alpha1.LocalVolume{}
		for _, claim := range slices.Sorted(maps.Keys(volumes)) {
			local := volumeOf(ctx, boundVolume(ctx, space, claim))
			locals[string(local.UID)] = local
			Expect(local.Status.Capacity.Value()).To(BeNumerically(">=", volumes[claim].sizeBytes), claim)
			reader.Devices = append(reader.Devices, claim)
			reader.Script += fmt.Sprintf("dd if=%s/%s bs=4096 count=1 2>/dev/null | head -c %d >>/dev/termination-log\n", workload.DeviceDirectory, claim, len(volumes[claim].content))
			expected.WriteString(volumes[claim].content)
		}
		listed := &v1alpha1.LocalVolumeList{}
		Expect(suite.client.List(ctx, listed)).To(Succeed())
		for i := range listed.Items {
			if local := &listed.Items[i]; local.Spec.Pool == set.Name {
				Expect(locals).To(HaveKey(string(local.UID)), "LocalVolume %s of claim %v", local.Name, local.Spec.ClaimRef)
			}
		}
		there := slices.Collect(maps.Keys(locals))
		for name := range snapshots {
			there = append(there, string(awaitSnapshot(ctx, space, name).UID))
		}
		there = append(there, "thin")
		Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
		Eventually(func(ctx context.Context) ([]string, error) {
			out, err := suite.hosts.Exec(ctx, node, "lvs --noheadings -o lv_name "+pool.Status.VGName)
			return strings.Fields(out), err
		}).WithContext(ctx).WithTimeout(patience).WithPolling(2*time.Second).Should(ConsistOf(there), "logical volumes, and LocalVolumes and LocalSnapshots")
		if len(reader.Devices) > 0 {
			read, _, err := space.RunPod(ctx, reader)
			Expect(err).NotTo(HaveOccurred())
			Expect(read).To(Equal(expected.String()), "what a pod reads from all of them")
		}
		found, err := lookAt(ctx, node)
		Expect(err).NotTo(HaveOccurred())
		for _, local := range locals {
			Expect(found.mounts).NotTo(ContainElement(ContainSubstring(local.Name)))
			Expect(found.ledger).To(ContainElement(string(local.UID)))
		}

		By("deleting all of it")
		for _, name := range slices.Sorted(maps.Keys(snapshots)) {
			Expect(space.Delete(ctx, snapshotObject("VolumeSnapshot", space.Namespace, name))).To(Succeed())
		}
		for _, claim := range slices.Sorted(maps.Keys(volumes)) {
			Expect(space.DeleteClaim(ctx, claim)).To(Succeed())
		}
		for _, local := range locals {
			expectGone(ctx, local)
		}
		removePool(ctx, set, pool)
		awaitDisk(ctx, node, disk.Serial, "blank")
	}, SpecTimeout(15*patience))
})

// copied is what a volume or a snapshot must hold.
type copied struct {
	sizeBytes int64
	content   string
}

// operator is one who makes, writes, grows, copies and deletes volumes, and knows what they
// must hold.
type operator struct {
	space             *workload.Space
	node, class, name string
	random            *rand.Rand
	made              int
	volumes           map[string]*copied
	snapshots         map[string]*copied
}

// act does one operation.
func (o *operator) act(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	claim, held := o.any(o.volumes)
	snapshot, taken := o.any(o.snapshots)
	var what string
	var err error
	switch n := o.random.IntN(10); {
	case held == nil || n < 2 && len(o.volumes) < 6:
		what, err = "make", o.claim(ctx, nil, &copied{sizeBytes: int64(16+16*o.random.IntN(3)) << 20})
	case n < 4:
		what, err = "write", o.write(ctx, claim)
	case n < 5 && held.sizeBytes < 128<<20:
		what, err = "grow", o.grow(ctx, claim, held.sizeBytes+32<<20)
	case n < 6 && len(o.snapshots) < 4:
		what, err = "snapshot", o.snapshot(ctx, claim)
	case n < 7 && taken != nil:
		group := "snapshot.storage.k8s.io"
		what, err = "restore", o.claim(ctx, &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: snapshot}, taken)
	case n < 8:
		what, err = "clone", o.claim(ctx, &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: claim}, held)
	case n < 9 && taken != nil:
		what, err = "delete a snapshot", o.space.Delete(ctx, snapshotObject("VolumeSnapshot", o.space.Namespace, snapshot))
		delete(o.snapshots, snapshot)
	default:
		what, err = "delete", o.remove(ctx, claim)
	}
	if err != nil {
		return fmt.Errorf("%s %s %s: %w", what, claim, snapshot, err)
	}
	return nil
}

// any chooses one of what there is.
func (o *operator) any(of map[string]*copied) (string, *copied) {
	if len(of) == 0 {
		return "", nil
	}
	name := slices.Sorted(maps.Keys(of))[o.random.IntN(len(of))]
	return name, of[name]
}

// claim makes a volume, of something or of nothing, and sees that it holds what its source held.
func (o *operator) claim(ctx context.Context, source *corev1.TypedLocalObjectReference, like *copied) error {
	o.made++
	name := fmt.Sprintf("%s-%d", o.name, o.made)
	claim := workload.Claim{Name: name, Class: o.class, Size: fmt.Sprint(like.sizeBytes), Block: true, Source: source, Annotations: map[string]string{pinned: o.node}}
	if _, err := o.space.CreateClaim(ctx, claim); err != nil {
		return err
	}
	if _, err := awaitBoundTo(ctx, o.space, name, o.node, false); err != nil {
		return err
	}
	o.volumes[name] = &copied{sizeBytes: like.sizeBytes, content: like.content}
	return o.check(ctx, name)
}

// local is the LocalVolume of a claim.
func (o *operator) local(ctx context.Context, claim string) (*v1alpha1.LocalVolume, error) {
	volume, err := o.space.AwaitBound(ctx, claim)
	if err != nil {
		return nil, err
	}
	local := &v1alpha1.LocalVolume{}
	return local, suite.client.Get(ctx, client.ObjectKey{Name: volume.Spec.CSI.VolumeHandle}, local)
}

// write gives a volume another content.
func (o *operator) write(ctx context.Context, claim string) error {
	local, err := o.local(ctx, claim)
	if err != nil {
		return err
	}
	content := fmt.Sprintf("%s:%016x;", claim, o.random.Uint64())
	device := "/dev/" + local.Status.LVM.VGName + "/" + local.Status.LVM.LVName
	if _, err := suite.hosts.Exec(ctx, o.node, fmt.Sprintf("test -b %[1]s && printf '%%s' '%[2]s' | dd of=%[1]s bs=4096 conv=nocreat,fsync,sync 2>/dev/null", device, content)); err != nil {
		return err
	}
	o.volumes[claim].content = content
	return o.check(ctx, claim)
}

// check reads a volume, and compares its size as the kernel has it.
func (o *operator) check(ctx context.Context, claim string) error {
	local, err := o.local(ctx, claim)
	if err != nil {
		return err
	}
	wanted := o.volumes[claim]
	device := "/dev/" + local.Status.LVM.VGName + "/" + local.Status.LVM.LVName
	read, err := suite.hosts.Exec(ctx, o.node, fmt.Sprintf("blockdev --getsize64 %[1]s; dd if=%[1]s bs=4096 count=1 iflag=direct 2>/dev/null | tr -d '\\000'", device))
	if err != nil {
		return err
	}
	size, content, _ := strings.Cut(read, "\n")
	var sizeBytes int64
	if _, err := fmt.Sscan(size, &sizeBytes); err != nil || sizeBytes < wanted.sizeBytes || content != wanted.content {
		return fmt.Errorf("it has %s bytes and holds %q; it must have %d and hold %q", size, content, wanted.sizeBytes, wanted.content)
	}
	return nil
}

func (o *operator) grow(ctx context.Context, name string, sizeBytes int64) error {
	claim := &corev1.PersistentVolumeClaim{}
	if err := suite.client.Get(ctx, client.ObjectKey{Namespace: o.space.Namespace, Name: name}, claim); err != nil {
		return err
	}
	patch := client.MergeFrom(claim.DeepCopy())
	claim.Spec.Resources.Requests[corev1.ResourceStorage] = *resource.NewQuantity(sizeBytes, resource.BinarySI)
	if err := suite.client.Patch(ctx, claim, patch); err != nil {
		return err
	}
	local, err := o.local(ctx, name)
	if err != nil {
		return err
	}
	if err := o.space.Await(ctx, local, func(object client.Object, gone bool) (bool, error) {
		capacity := object.(*v1alpha1.LocalVolume).Status.Capacity
		return capacity != nil && capacity.Value() >= sizeBytes, nil
	}); err != nil {
		return err
	}
	o.volumes[name].sizeBytes = sizeBytes
	return o.check(ctx, name)
}

func (o *operator) snapshot(ctx context.Context, claim string) error {
	o.made++
	name := fmt.Sprintf("%s-%d", o.name, o.made)
	snapshot := snapshotObject("VolumeSnapshot", o.space.Namespace, name)
	snapshot.Object["spec"] = map[string]any{"volumeSnapshotClassName": "berth", "source": map[string]any{"persistentVolumeClaimName": claim}}
	if err := suite.client.Create(ctx, snapshot); err != nil {
		return err
	}
	if err := o.space.Await(ctx, snapshot, func(object client.Object, _ bool) (bool, error) {
		ready, _, err := unstructured.NestedBool(object.(*unstructured.Unstructured).Object, "status", "readyToUse")
		return ready, err
	}); err != nil {
		return err
	}
	held := *o.volumes[claim]
	o.snapshots[name] = &held
	return nil
}

func (o *operator) remove(ctx context.Context, claim string) error {
	volume, err := o.space.AwaitBound(ctx, claim)
	if err != nil {
		return err
	}
	if err := o.space.DeleteClaim(ctx, claim); err != nil {
		return err
	}
	delete(o.volumes, claim)
	return o.space.AwaitVolumeGone(ctx, volume.Name)
}
