// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

const adoptedName = "adopted-" + leftUID

// adoptedVolume is a LocalVolume that asks for the left-over, with what its agent says.
func adoptedVolume(reason string) *berth.LocalVolume {
	lv := &berth.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{Name: adoptedName},
		Spec: berth.LocalVolumeSpec{
			NodeName: "node1", Mode: berth.ModeLVM, Pool: "fast", VolumeMode: berth.VolumeFilesystem, SizeBytes: 3 << 30, FSType: "ext4",
			Adopt: &berth.Adoption{LeftOver: &berth.AdoptedLeftOver{UID: leftUID, Identity: "vg/lv"}},
		},
	}
	answerAdoption(lv, reason)
	return lv
}

// answerAdoption is what the agent says; nothing when it has no reason.
func answerAdoption(lv *berth.LocalVolume, reason string) {
	if reason == "" {
		return
	}
	status := metav1.ConditionFalse
	if reason == berth.ReasonCarved {
		status = metav1.ConditionTrue
		lv.Status.Capacity = resource.NewQuantity(3<<30, resource.BinarySI)
		lv.Status.LVM = &berth.LVMRecord{VGName: "berth-fast", VGUUID: "vg", LVName: "new", LVUUID: "lv"}
	}
	lv.Status.Conditions = []metav1.Condition{{Type: berth.LocalVolumeReady, Status: status, Reason: reason, Message: "as it is"}}
}

func TestAdopt(t *testing.T) {
	t.Parallel()
	classed := claimOf("orders", "fast", "")
	asked := []berth.PurgeRequest{{UID: leftUID, Kind: berth.LeftOverVolume, Identity: "vg/lv"}}
	for name, tc := range map[string]struct {
		args   string
		purges []berth.PurgeRequest
		add    []client.Object
		// answers is the reason that the agent gives when it is asked.
		answers string
		code    int
		// made are whether there is the LocalVolume and the PersistentVolume afterwards.
		lv, pv bool
		says   []string
	}{
		"planned": {
			args: "node1/fast/pvc-3 --fs-type=ext4 --claim=shop/orders",
			says: []string{"Identity  vg/lv", "It becomes LocalVolume and PersistentVolume " + adoptedName, "for claim shop/orders", "Nothing was changed.", leftUID + " --fs-type=ext4 --claim=shop/orders --yes"},
		},
		"done": {
			args: "node1/fast/pvc-3 --fs-type=ext4 --yes", answers: berth.ReasonCarved, lv: true, pv: true,
			says: []string{"a volume of Berth again", `storageClassName: "" and volumeName: ` + adoptedName},
		},
		"done for a claim to come": {
			args: "node1/fast/pvc-3 --fs-type=none --claim=shop/orders --yes", answers: berth.ReasonCarved, lv: true, pv: true, says: []string{"Make claim shop/orders with"},
		},
		"done for a claim": {
			args: "node1/fast/pvc-3 --fs-type=ext4 --claim=default/orders --storage-class=fast --yes", add: []client.Object{classed}, answers: berth.ReasonCarved, lv: true, pv: true,
			says: []string{"Claim default/orders gets it"},
		},
		"refused by the agent": {
			args: "node1/fast/pvc-3 --fs-type=xfs --yes", answers: berth.ReasonNotAdoptable, code: exitTrouble, lv: true, says: []string{"NotAdoptable: as it is", "--withdraw --yes"},
		},
		"not answered": {args: "node1/fast/pvc-3 --fs-type=xfs --yes", code: exitTrouble, lv: true, says: []string{"has not answered yet"}},
		"gone on with": {
			args: "node1/fast/" + leftUID + " --yes", add: []client.Object{adoptedVolume(berth.ReasonCarved)}, lv: true, pv: true, says: []string{"a volume of Berth again"},
		},
		"done twice": {
			args: "node1/fast/" + leftUID + " --yes", add: []client.Object{adoptedVolume(berth.ReasonCarved), newVolume(adoptedVolume(""), *resource.NewQuantity(1, resource.BinarySI))}, lv: true, pv: true,
		},
		"another one's PersistentVolume": {
			args: "node1/fast/" + leftUID + " --yes", add: []client.Object{adoptedVolume(berth.ReasonCarved), &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: adoptedName}}},
			code: exitUsage, lv: true, pv: true, says: []string{"not of the volume of that name"},
		},
		"another one's LocalVolume": {
			args: "node1/fast/" + leftUID + " --yes", add: []client.Object{&berth.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: adoptedName}}}, code: exitUsage, lv: true, says: []string{"not of this left-over"},
		},
		"withdrawn": {args: "node1/fast/pvc-3 --withdraw --yes", add: []client.Object{adoptedVolume(berth.ReasonNotAdoptable)}, says: []string{"not asked for any more"}},
		"withdrawn without yes": {
			args: "node1/fast/pvc-3 --withdraw", add: []client.Object{adoptedVolume(berth.ReasonNotAdoptable)}, lv: true, says: []string{"Nothing was changed", "--withdraw --yes"},
		},
		"withdrawn too late": {
			args: "node1/fast/" + leftUID + " --withdraw --yes", add: []client.Object{adoptedVolume(berth.ReasonCarved)}, code: exitTrouble, lv: true, says: []string{"adopted already"},
		},
		"withdrawn what nobody asked": {args: "node1/fast/pvc-3 --withdraw --yes", code: exitTrouble, says: []string{"nobody has asked"}},
		"its claim is there":          {args: "node1/fast/pvc-3 --fs-type=ext4 --yes", add: []client.Object{claimOf("lost", "fast", "pvc-3")}, code: exitTrouble, says: []string{"claim default/lost is bound to"}},
		"its PersistentVolume is there": {args: "node1/fast/pvc-3 --fs-type=ext4 --yes", add: []client.Object{&corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "by-hand"},
			Spec:       corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: berth.DriverName, VolumeHandle: "pvc-3"}}},
		}}, code: exitTrouble, says: []string{"PersistentVolume by-hand leads to it"}},
		"to be purged":           {args: "node1/fast/pvc-3 --fs-type=ext4 --yes", purges: asked, code: exitTrouble, says: []string{"asked to purge it"}},
		"a claim of a class":     {args: "node1/fast/pvc-3 --fs-type=ext4 --claim=default/orders --yes", add: []client.Object{classed}, code: exitTrouble, says: []string{"--storage-class=fast"}},
		"a claim that has one":   {args: "node1/fast/pvc-3 --fs-type=ext4 --claim=default/bound --storage-class=fast", add: []client.Object{claimOf("bound", "fast", "pvc-1")}, code: exitTrouble, says: []string{"has PersistentVolume pvc-1"}},
		"no type":                {args: "node1/fast/pvc-3 --yes", code: exitUsage, says: []string{"--fs-type"}},
		"a claim without a name": {args: "node1/fast/pvc-3 --fs-type=ext4 --claim=orders", code: exitUsage, says: []string{"NAMESPACE/NAME"}},
		"a snapshot":             {args: "node1/fast/00000000-0000-4000-8000-000000000004 --fs-type=ext4 --yes", code: exitTrouble, says: []string{"a snapshot does not become a volume"}},
		"of unknown identity":    {args: "node1/fast/pvc-5 --fs-type=ext4 --yes", code: exitTrouble, says: []string{"cannot be named in full"}},
		"of nobody":              {args: "node1/fast//srv/berth/volumes/x --fs-type=ext4 --yes", code: exitTrouble, says: []string{"no mark of Berth"}},
		"in use":                 {args: "node1/fast/pvc-6 --fs-type=ext4 --yes", code: exitTrouble, says: []string{"in use: mounted at /mnt"}},
		"nothing of a name":      {args: "node1/fast/pvc-9 --fs-type=ext4 --yes", code: exitUsage, says: []string{"no left-over pvc-9"}},
		"a name alone":           {args: "pvc-3", code: exitUsage, says: []string{"NODE/POOL/NAME"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := leftCluster(tc.purges)
			run := runAdoption(t, c, tc.add, tc.args, func(lv *berth.LocalVolume) { answerAdoption(lv, tc.answers) })
			run.want(t, tc.code, tc.lv, tc.pv, tc.says...)
			if t.Failed() {
				return
			}
			lv, pv := run.lv, run.pv
			if len(tc.add) == 0 && tc.lv && (lv.Spec.Adopt == nil || lv.Spec.Adopt.LeftOver == nil || lv.Spec.Adopt.LeftOver.UID != leftUID || lv.Spec.Adopt.LeftOver.Identity != "vg/lv" || lv.Spec.Pool != "fast" || lv.Spec.SizeBytes != 3<<30) {
				t.Errorf("the LocalVolume is %+v", lv.Spec)
			}
			if block := strings.Contains(tc.args, "--fs-type=none"); len(tc.add) == 0 && tc.pv && (pv.Spec.CSI.VolumeHandle != adoptedName || pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain ||
				pv.Spec.Capacity.Storage().Value() != 3<<30 || (*pv.Spec.VolumeMode == corev1.PersistentVolumeBlock) != block || nodeOf(pv) != "node1" || (pv.Spec.ClaimRef != nil) != strings.Contains(tc.args, "--claim")) {
				t.Errorf("the PersistentVolume is %+v", pv.Spec)
			}
		})
	}
}

// What has become the volume between the look and the deletion is not deleted.
func TestAdoptIsNotWithdrawnWhenItIsDoneMeanwhile(t *testing.T) {
	t.Parallel()
	c := leftCluster(nil)
	c.add(adoptedVolume(berth.ReasonNotAdoptable))
	deleted := false
	api := interceptor.NewClient(c.build(t), interceptor.Funcs{
		Delete: func(_ context.Context, _ client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			deleted = true
			options := (&client.DeleteOptions{}).ApplyOptions(opts)
			if p := options.Preconditions; p == nil || p.ResourceVersion == nil || *p.ResourceVersion != o.GetResourceVersion() || *p.ResourceVersion == "" {
				t.Errorf("it is deleted whatever it is: %+v", p)
			}
			return apierrors.NewConflict(berth.GroupVersion.WithResource("localvolumes").GroupResource(), o.GetName(), nil)
		},
	})
	var out, errs strings.Builder
	code := Run(t.Context(), []string{"orphans", "adopt", "node1/fast/pvc-3", "--withdraw", "--yes"}, Streams{Out: &out, Err: &errs}, func(Options) (Cluster, error) { return Cluster{Client: api}, nil })
	if code != exitUnasked || !deleted || !strings.Contains(errs.String(), "look at it again") {
		t.Errorf("exit code %d: %s%s", code, out.String(), errs.String())
	}
	lv := &berth.LocalVolume{}
	if err := api.Get(t.Context(), client.ObjectKey{Name: adoptedName}, lv); err != nil || lv.Annotations[allowDelete] != "" {
		t.Errorf("anybody may delete it by a slip: %v, %v", lv.Annotations, err)
	}
}

func TestAdoptJSON(t *testing.T) {
	t.Parallel()
	code, out, errs := leftCluster(nil).run(t, "orphans", "adopt", "node1/fast/pvc-3", "--fs-type=ext4", "-o", "json")
	var plan adoptPlan
	if err := json.Unmarshal([]byte(out), &plan); err != nil || code != exitWell {
		t.Fatalf("exit code %d, %v: %s%s", code, err, out, errs)
	}
	if plan.Pool != "fast-node1" || plan.Volume != adoptedName || plan.Asked || plan.Adopted || !strings.HasSuffix(plan.Next, "--yes") {
		t.Errorf("it is %+v", plan)
	}
}

func TestAdoptFlagsAreItsOwn(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"orphans", "list", "--claim=a/b"}, {"orphans", "purge", "a/b/c", "--fs-type=ext4"}, {"status", "--storage-class=x"}, {"orphans", "adopt", "a/b/c", "--confirm=x"}} {
		if code, _, errs := newCluster().run(t, args...); code != exitUsage || !strings.Contains(errs, "only") {
			t.Errorf("%s: exit code %d, %s", args, code, errs)
		}
	}
}

// adoptionRun is what a run of orphans adopt has said and left; lv and pv are nil where none is there.
type adoptionRun struct {
	code int
	said string
	lv   *berth.LocalVolume
	pv   *corev1.PersistentVolume
}

// runAdoption runs orphans adopt in a cluster whose agent answers each LocalVolume that is made.
func runAdoption(t *testing.T, c *cluster, add []client.Object, args string, answer func(*berth.LocalVolume)) adoptionRun {
	t.Helper()
	for _, o := range add {
		c.add(o.DeepCopyObject().(client.Object)) //nolint:forcetypeassert // a copy is what it is a copy of
	}
	api := interceptor.NewClient(c.build(t), interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if lv, ok := o.(*berth.LocalVolume); ok {
				answered := lv.DeepCopy()
				answer(answered)
				return c.Create(ctx, answered, opts...)
			}
			return c.Create(ctx, o, opts...)
		},
	})
	var out, errs strings.Builder
	words := append([]string{"orphans", "adopt", "--wait=0"}, strings.Fields(args)...)
	run := adoptionRun{code: Run(t.Context(), words, Streams{Out: &out, Err: &errs}, func(Options) (Cluster, error) { return Cluster{Client: api}, nil })}
	run.said = out.String() + errs.String()
	there := func(o client.Object) bool {
		err := api.Get(t.Context(), client.ObjectKey{Name: adoptedName}, o)
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return err == nil
	}
	if lv := (&berth.LocalVolume{}); there(lv) {
		run.lv = lv
	}
	if pv := (&corev1.PersistentVolume{}); there(pv) {
		run.pv = pv
	}
	return run
}

// want compares a run with what it is to end with, leave and say.
func (r adoptionRun) want(t *testing.T, code int, lv, pv bool, says ...string) {
	t.Helper()
	if r.code != code || (r.lv != nil) != lv || (r.pv != nil) != pv {
		t.Errorf("exit code %d, want %d; LocalVolume %v, PersistentVolume %v\n%s", r.code, code, r.lv != nil, r.pv != nil, r.said)
	}
	for _, part := range says {
		if !strings.Contains(r.said, part) {
			t.Errorf("it does not say %q:\n%s", part, r.said)
		}
	}
}
