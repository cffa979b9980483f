// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

const oldDirectory = "/opt/local-path-provisioner/pvc-7_shop_db"

// oldCluster has a volume of local-path-provisioner, and all that is needed to move it.
func oldCluster() *cluster {
	c := newCluster()
	for _, name := range []string{"node1", "node2"} {
		get[*corev1.Node](c, "Node//"+name).Labels = map[string]string{corev1.LabelHostname: name + ".example"}
	}
	class := "local-path"
	claim := claimOf("db", class, "pvc-7")
	claim.Namespace, claim.Labels = "shop", map[string]string{"app": "db"}
	claim.Annotations = map[string]string{"pv.kubernetes.io/bind-completed": "yes", "team": "shop"}
	claim.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db", UID: "s"}}
	claim.Status.Phase = corev1.ClaimBound
	c.add(
		claim,
		&corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pvc-7", UID: "uid-pvc-7", Annotations: map[string]string{provisionedBy: localPathProvisioner, selectedNode: "node1"}},
			Spec: corev1.PersistentVolumeSpec{
				Capacity: corev1.ResourceList{corev1.ResourceStorage: *gib(1)}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete, StorageClassName: class,
				ClaimRef:               &corev1.ObjectReference{Namespace: "shop", Name: "db", UID: claim.UID},
				PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: oldDirectory}},
				NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"node1.example"}}},
				}}}},
			},
			Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
		},
		&berth.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: "dirs"}, Spec: berth.PoolSetSpec{Kind: berth.PoolHostpath, Hostpath: &berth.HostpathPool{Path: "/opt/local-path-provisioner/berth"}}},
		&berth.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: "opt"}, Spec: berth.PoolSetSpec{Kind: berth.PoolHostpath, Hostpath: &berth.HostpathPool{Path: "/opt/berth"}}},
		&berth.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: "far"}, Spec: berth.PoolSetSpec{Kind: berth.PoolHostpath, Hostpath: &berth.HostpathPool{Path: "/srv/dirs"}}},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "berth-local-path"}, Provisioner: berth.DriverName},
	)
	for _, set := range []string{"dirs", "opt", "far"} {
		c.add(&berth.Pool{
			ObjectMeta: metav1.ObjectMeta{Name: set + "-node1"}, Spec: berth.PoolSpec{NodeName: "node1", PoolSetName: set, Kind: berth.PoolHostpath},
			Status: berth.PoolStatus{Conditions: condition(berth.PoolReady, true, "PoolReady", "volumes can be made")},
		})
	}
	return c
}

var errCut = errors.New("cut short")

// living is the API of a cluster whose agent and whose controllers do what theirs do, and
// which ends the connection around its n-th write.
type living struct {
	t      *testing.T
	writes int
	cutAt  int // negative for never; even before a write, odd after it
	// refuses is what the agent says instead of moving the directory.
	refuses string
	// pod appears when the claim is deleted, and holds it.
	held bool
}

func (l *living) around(do func() error) error {
	if l.cutAt == l.writes {
		return errCut
	}
	l.writes++
	if err := do(); err != nil {
		return err
	}
	if l.cutAt == l.writes {
		return errCut
	}
	l.writes++
	return nil
}

func (l *living) over(c *cluster) client.Client {
	scheme, err := newScheme()
	if err != nil {
		l.t.Fatal(err)
	}
	builder := fake.NewClientBuilder().WithScheme(scheme)
	for _, o := range c.objects {
		builder = builder.WithObjects(o.DeepCopyObject().(client.Object))
	}
	return interceptor.NewClient(builder.Build(), interceptor.Funcs{
		Patch: func(ctx context.Context, api client.WithWatch, o client.Object, patch client.Patch, opts ...client.PatchOption) error {
			return l.around(func() error { return api.Patch(ctx, o, patch, opts...) })
		},
		Delete: func(ctx context.Context, api client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			return l.around(func() error { return l.delete(ctx, api, o, opts) })
		},
		Create: func(ctx context.Context, api client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			return l.around(func() error { return l.create(ctx, api, o, opts) })
		},
	})
}

// delete proves that nothing but the claim is deleted, and that only when its volume is kept.
func (l *living) delete(ctx context.Context, api client.Client, o client.Object, opts []client.DeleteOption) error {
	l.t.Helper()
	claim, ok := o.(*corev1.PersistentVolumeClaim)
	var options client.DeleteOptions
	options.ApplyOptions(opts)
	if !ok || options.Preconditions == nil || options.Preconditions.UID == nil || *options.Preconditions.UID != "uid-db" {
		l.t.Errorf("%T %s is deleted", o, o.GetName())
		return errCut
	}
	pv := &corev1.PersistentVolume{}
	if err := api.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, pv); err != nil || pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
		l.t.Errorf("the claim is deleted while its volume has the policy %s, %v", pv.Spec.PersistentVolumeReclaimPolicy, err)
	}
	if l.held {
		claim.Finalizers = []string{"kubernetes.io/pvc-protection"}
		if err := api.Update(ctx, claim); err != nil {
			return err
		}
	}
	return api.Delete(ctx, claim)
}

// create proves the order, and answers for the agent and for the controller of claims.
func (l *living) create(ctx context.Context, api client.Client, o client.Object, opts []client.CreateOption) error {
	l.t.Helper()
	err := api.Get(ctx, client.ObjectKey{Namespace: "shop", Name: "db"}, &corev1.PersistentVolumeClaim{})
	there := err == nil
	switch o := o.(type) {
	case *berth.LocalVolume:
		if there {
			l.t.Error("the directory is moved while there is a claim that leads to it")
		}
		o.UID = "uid-lv"
		if l.refuses != "" {
			o.Status.Conditions = condition(berth.LocalVolumeReady, false, berth.ReasonNotAdoptable, l.refuses)
		} else {
			o.Status.Conditions = condition(berth.LocalVolumeReady, true, berth.ReasonCarved, "the volume stands")
			o.Status.Capacity = gib(1)
			o.Status.Hostpath = &berth.HostpathRecord{Root: "/opt/local-path-provisioner/berth", Directory: "volumes/uid-lv", RootID: "r"}
		}
	case *corev1.PersistentVolumeClaim:
		if !there && o.UID == "" {
			o.UID, o.Status.Phase = "uid-new", corev1.ClaimBound
		}
	}
	return api.Create(ctx, o, opts...)
}

func (l *living) run(api client.Client, args ...string) (code int, out, errs string) {
	l.t.Helper()
	var stdout, stderr strings.Builder
	code = Run(l.t.Context(), append([]string{"import", "local-path", "--timeout=60ms"}, args...), Streams{Out: &stdout, Err: &stderr},
		func(Options) (Cluster, error) { return Cluster{Client: api}, nil })
	return code, stdout.String(), stderr.String()
}

// wantMoved checks all that a move leaves.
func wantMoved(t *testing.T, api client.Client) {
	t.Helper()
	ctx := t.Context()
	old, pv, claim, lv := &corev1.PersistentVolume{}, &corev1.PersistentVolume{}, &corev1.PersistentVolumeClaim{}, &berth.LocalVolume{}
	for key, o := range map[client.ObjectKey]client.Object{{Name: "pvc-7"}: old, {Name: "pvc-7-berth"}: pv, {Namespace: "shop", Name: "db"}: claim} {
		if err := api.Get(ctx, key, o); err != nil {
			t.Fatal(err)
		}
	}
	if err := api.Get(ctx, client.ObjectKey{Name: "pvc-7-berth"}, lv); err != nil {
		t.Fatal(err)
	}
	if old.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain || old.Annotations[importPolicy] != "Delete" {
		t.Errorf("the old one is %+v", old)
	}
	s := lv.Spec
	if s.NodeName != "node1" || s.Pool != "dirs" || s.Mode != berth.ModeHostpath || s.Wipe != berth.WipeNone || s.Adopt == nil || s.Adopt.Directory != oldDirectory || s.SizeBytes != 1<<30 || s.ClaimRef.UID != "uid-new" {
		t.Errorf("the LocalVolume is %+v", s)
	}
	ref := pv.Spec.ClaimRef
	if pv.Spec.CSI == nil || pv.Spec.CSI.VolumeHandle != lv.Name || ref == nil || ref.Namespace != "shop" || ref.Name != "db" || ref.UID != "" || !isBoundTo(pv, "node1") ||
		pv.Spec.StorageClassName != "berth-local-path" || pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || pv.Annotations[provisionedBy] != berth.DriverName {
		t.Errorf("the new PersistentVolume is %+v", pv)
	}
	if claim.Spec.VolumeName != pv.Name || valueOf(claim.Spec.StorageClassName) != "berth-local-path" || claim.Labels["app"] != "db" || claim.Annotations["team"] != "shop" ||
		claim.Annotations["pv.kubernetes.io/bind-completed"] != "" || claim.Spec.Resources.Requests.Storage().Cmp(*gib(1)) != 0 || len(claim.OwnerReferences) > 0 {
		t.Errorf("the new claim is %+v", claim)
	}
	back := &corev1.PersistentVolumeClaim{}
	if err := json.Unmarshal([]byte(old.Annotations[importClaim]), back); err != nil || back.Spec.VolumeName != "pvc-7" || valueOf(back.Spec.StorageClassName) != "local-path" || back.Name != "db" || back.UID != "" {
		t.Errorf("the claim to go back with is %+v, %v", back, err)
	}
}

func TestImportPlan(t *testing.T) {
	t.Parallel()
	volume := func(c *cluster) *corev1.PersistentVolume {
		return get[*corev1.PersistentVolume](c, "PersistentVolume//pvc-7")
	}
	for name, tc := range map[string]struct {
		change func(*cluster)
		args   []string
		code   int
		says   []string
		not    string
	}{
		"it can be moved": {says: []string{
			"shop/db   node1   1Gi    dirs   Ready", "1. Set the reclaim policy of PersistentVolume pvc-7 to Retain", "2. Delete claim shop/db",
			"node node1 moves " + oldDirectory + " into pool dirs (/opt/local-path-provisioner/berth)", "with reclaim policy Delete", "StorageClass berth-local-path", "Nothing was changed",
		}, not: "To go back"},
		"by its claim":         {args: []string{"shop/db"}, says: []string{"Nothing was changed"}},
		"in its namespace":     {args: []string{"db", "-n", "shop"}, says: []string{"Nothing was changed"}},
		"in another namespace": {args: []string{"db"}, code: exitUsage, says: []string{`that of "db"`}},
		"by its volume":        {args: []string{"pv/pvc-7"}, says: []string{"Nothing was changed"}},
		"all":                  {args: []string{"--all"}, says: []string{"shop/db", "Nothing was changed"}},
		"there is none":        {change: func(c *cluster) { delete(c.objects, "PersistentVolume//pvc-7") }, args: []string{"--all"}, says: []string{"no PersistentVolume of rancher.io/local-path"}},
		"a volume of kind local": {change: func(c *cluster) {
			volume(c).Spec.HostPath, volume(c).Spec.Local = nil, &corev1.LocalVolumeSource{Path: oldDirectory}
		}, says: []string{"Nothing was changed"}},
		"another pool":     {args: []string{"pv/pvc-7", "--pool=opt"}, says: []string{"into pool opt (/opt/berth)"}},
		"a pool elsewhere": {args: []string{"pv/pvc-7", "--pool=far"}, code: exitTrouble, says: []string{"no pool far that takes directories from /opt/local-path-provisioner"}},
		"another class": {change: func(c *cluster) {
			c.add(&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "dirs"}, Provisioner: berth.DriverName})
		}, args: []string{"pv/pvc-7", "--storage-class=dirs"}, says: []string{"StorageClass dirs"}},
		"a class of others":    {args: []string{"pv/pvc-7", "--storage-class=theirs"}, code: exitTrouble, says: []string{"of other.example.com and not of Berth"}},
		"no class":             {change: func(c *cluster) { delete(c.objects, "StorageClass//berth-local-path") }, code: exitTrouble, says: []string{"no StorageClass berth-local-path"}},
		"a pod uses it":        {change: func(c *cluster) { pod := podOf("db-0", "node1", "db"); pod.Namespace = "shop"; c.add(pod) }, code: exitTrouble, says: []string{"pods use claim shop/db: db-0"}},
		"of another one":       {change: func(c *cluster) { volume(c).Annotations[provisionedBy] = "x" }, code: exitTrouble, says: []string{"it is of x"}},
		"another name of it":   {change: func(c *cluster) { volume(c).Annotations[provisionedBy] = "x" }, args: []string{"--all", "--provisioner=x"}, says: []string{"Nothing was changed"}},
		"no directory":         {change: func(c *cluster) { volume(c).Spec.HostPath = nil }, code: exitTrouble, says: []string{"neither hostPath nor local"}},
		"many nodes":           {change: func(c *cluster) { volume(c).Spec.AccessModes[0] = corev1.ReadWriteMany }, code: exitTrouble, says: []string{"ReadWriteMany"}},
		"no affinity":          {change: func(c *cluster) { volume(c).Spec.NodeAffinity = nil }, code: exitTrouble, says: []string{"several nodes mount"}},
		"no such node":         {change: func(c *cluster) { delete(c.objects, "Node//node1") }, code: exitTrouble, says: []string{"0 nodes have the label kubernetes.io/hostname=node1.example"}},
		"two such nodes":       {change: func(c *cluster) { get[*corev1.Node](c, "Node//node2").Labels[corev1.LabelHostname] = "node1.example" }, code: exitTrouble, says: []string{"2 nodes have the label"}},
		"two answers":          {change: func(c *cluster) { volume(c).Annotations[selectedNode] = "node2" }, code: exitTrouble, says: []string{"says node node2"}},
		"no agent":             {change: func(c *cluster) { delete(c.objects, "Pod/berth-system/agent-node1") }, code: exitTrouble, says: []string{"no agent of Berth"}},
		"an agent that is not": {change: func(c *cluster) { get[*corev1.Pod](c, "Pod/berth-system/agent-node1").Status.Conditions = nil }, code: exitTrouble, says: []string{"is not ready"}},
		"a pool that is not": {change: func(c *cluster) {
			get[*berth.Pool](c, "Pool//dirs-node1").Status.Conditions = condition(berth.PoolReady, false, "RootUnavailable", "no marker")
		}, code: exitTrouble, says: []string{"pool dirs-node1 is not ready: no marker"}},
		"being deleted": {change: func(c *cluster) {
			now := metav1.Now()
			claim := get[*corev1.PersistentVolumeClaim](c, "PersistentVolumeClaim/shop/db")
			claim.DeletionTimestamp, claim.Finalizers = &now, []string{"x"}
		}, code: exitTrouble, says: []string{"deletion of its claim shop/db was asked for"}},
		"released": {change: func(c *cluster) { delete(c.objects, "PersistentVolumeClaim/shop/db") }, code: exitTrouble, says: []string{"its claim shop/db is gone"}},
		"no claim": {change: func(c *cluster) { volume(c).Spec.ClaimRef = nil }, code: exitTrouble, says: []string{"it has no claim"}},
		"two of one directory": {change: func(c *cluster) {
			other := volume(c).DeepCopy()
			other.Name, other.Spec.HostPath.Path = "other", oldDirectory+"/sub"
			c.add(other)
		}, code: exitTrouble, says: []string{"PersistentVolume other has the same directory"}},
		"the same path of another node": {change: func(c *cluster) {
			other := volume(c).DeepCopy()
			other.Name, other.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0] = "other", "node2.example"
			c.add(other)
		}, says: []string{"Nothing was changed"}},
		"a volume in the way": {change: func(c *cluster) {
			c.add(&berth.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-7-berth"}, Spec: berth.LocalVolumeSpec{NodeName: "node1"}})
		}, code: exitTrouble, says: []string{"LocalVolume pvc-7-berth that is not of this directory"}},
		"a PersistentVolume in the way": {change: func(c *cluster) {
			c.add(&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-7-berth"}})
		}, code: exitTrouble, says: []string{"PersistentVolume pvc-7-berth that is not of the volume"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := oldCluster()
			if tc.change != nil {
				tc.change(c)
			}
			if tc.args == nil {
				tc.args = []string{"pv/pvc-7"}
			}
			l := &living{t: t, cutAt: -1}
			api := l.over(c)
			code, out, errs := l.run(api, tc.args...)
			if code != tc.code {
				t.Errorf("exit code %d, want %d: %s%s", code, tc.code, out, errs)
			}
			for _, says := range tc.says {
				if !strings.Contains(out+errs, says) {
					t.Errorf("it says\n%s%s\nand not %q", out, errs, says)
				}
			}
			if tc.not != "" && strings.Contains(out, tc.not) {
				t.Errorf("it says\n%s", out)
			}
			if tc.code == exitTrouble {
				// Not with an order either.
				if code, _, _ := l.run(api, append(tc.args, "--yes")...); code != exitTrouble {
					t.Errorf("with --yes the exit code is %d", code)
				}
			}
			if l.writes > 0 {
				t.Errorf("%d writes", l.writes)
			}
		})
	}
}

// Cut short before and after each write, the next run brings it to its end.
func TestImportCutShort(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		l := &living{t: t, cutAt: n}
		api := l.over(oldCluster())
		code, out, errs := l.run(api, "shop/db", "--yes")
		cut := code == exitUnasked && strings.Contains(errs, errCut.Error())
		if !cut && code != exitWell {
			t.Fatalf("cut at %d: exit code %d: %s%s", n, code, out, errs)
		}
		l.cutAt = -1
		for range 2 { // and once more, which changes nothing
			code, out, errs = l.run(api, "shop/db", "--yes")
			if code != exitWell || !strings.Contains(out, "Moved") || !strings.Contains(out, "To go back") || !strings.Contains(out, "way back from then on:\n  kubectl delete pv "+"pvc-") {
				t.Fatalf("cut at %d, and run again: exit code %d: %s%s", n, code, out, errs)
			}
		}
		wantMoved(t, api)
		if !cut {
			if n != 12 {
				t.Errorf("%d steps, want 12: before and after two patches, a deletion and three creations", n)
			}
			if l.writes != 12 {
				t.Errorf("done once more, it is written again: %d", l.writes)
			}
			return
		}
	}
}

// What cannot go on says why, and how to go back; and goes on when it can.
func TestImportStops(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		prepare func(*living)
		mend    func(*testing.T, *living, client.Client)
		says    []string
	}{
		"the directory is in use": {
			prepare: func(l *living) { l.refuses = "process 7 (postgres) has it mounted at /data" },
			mend:    becomeReady, says: []string{"NotAdoptable: process 7 (postgres)", "kubectl create -f -", "/taken-back/uid-lv.*"},
		},
		"it holds more than its size": {
			prepare: func(l *living) { l.refuses = "it holds 2 bytes and spec.sizeBytes is 1" },
			mend:    becomeReady, says: []string{"kubectl patch localvolume pvc-7-berth"},
		},
		"a pod came meanwhile": {
			prepare: func(l *living) { l.held = true },
			mend: func(t *testing.T, l *living, api client.Client) {
				claim := &corev1.PersistentVolumeClaim{}
				if err := api.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: "db"}, claim); err != nil {
					t.Fatal(err)
				}
				claim.Finalizers, l.held = nil, false
				if err := client.IgnoreNotFound(api.Update(t.Context(), claim)); err != nil {
					t.Fatal(err)
				}
			},
			says: []string{"the deletion of claim shop/db waits"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &living{t: t, cutAt: -1}
			tc.prepare(l)
			api := l.over(oldCluster())
			code, out, errs := l.run(api, "shop/db", "--yes", "-o", "wide")
			if code != exitTrouble {
				t.Errorf("exit code %d: %s%s", code, out, errs)
			}
			for _, says := range tc.says {
				if !strings.Contains(out+errs, says) {
					t.Errorf("it says\n%s%s\nand not %q", out, errs, says)
				}
			}
			if err := api.Get(t.Context(), client.ObjectKey{Name: "pvc-7-berth"}, &corev1.PersistentVolume{}); !apierrors.IsNotFound(err) {
				t.Errorf("there is a PersistentVolume of what does not stand: %v", err)
			}
			tc.mend(t, l, api)
			if code, out, errs := l.run(api, "shop/db", "--yes"); code != exitWell {
				t.Fatalf("exit code %d: %s%s", code, out, errs)
			}
			wantMoved(t, api)
		})
	}
}

// becomeReady lets the agent move the directory after all.
func becomeReady(t *testing.T, _ *living, api client.Client) {
	t.Helper()
	lv := &berth.LocalVolume{}
	if err := api.Get(t.Context(), client.ObjectKey{Name: "pvc-7-berth"}, lv); err != nil {
		t.Fatal(err)
	}
	lv.Status.Conditions = condition(berth.LocalVolumeReady, true, berth.ReasonCarved, "the volume stands")
	if err := api.Update(t.Context(), lv); err != nil {
		t.Fatal(err)
	}
}

// Somebody, a StatefulSet, has made the claim anew in the meantime: it is not touched.
func TestImportOfAClaimMadeAnew(t *testing.T) {
	t.Parallel()
	l := &living{t: t, cutAt: 4} // the old claim is gone
	api := l.over(oldCluster())
	if code, out, errs := l.run(api, "shop/db", "--yes"); code != exitUnasked {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	l.cutAt = -1
	claim := claimOf("db", "local-path", "")
	claim.Namespace, claim.UID = "shop", "uid-stranger"
	if err := api.Create(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	code, out, _ := l.run(api, "shop/db", "--yes", "-o", "json")
	var moves []move
	if err := json.Unmarshal([]byte(out), &moves); err != nil || code != exitTrouble || len(moves) != 1 || moves[0].State != stateRefused || !strings.Contains(moves[0].Refusals[0], "made claim shop/db anew") {
		t.Fatalf("exit code %d: %s, %v", code, out, err)
	}
	there := &corev1.PersistentVolumeClaim{}
	if err := api.Get(t.Context(), client.ObjectKeyFromObject(claim), there); err != nil || there.UID != "uid-stranger" || there.DeletionTimestamp != nil {
		t.Errorf("the claim of somebody else is %+v, %v", there, err)
	}
}
