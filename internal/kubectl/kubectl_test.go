// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// cluster is what a run sees: two nodes with agents, a pool, a claim that is used, and whatever
// a test adds or changes.
type cluster struct {
	objects map[string]client.Object
}

func condition(kind string, status bool, reason, message string) []metav1.Condition {
	of := metav1.ConditionFalse
	if status {
		of = metav1.ConditionTrue
	}
	return []metav1.Condition{{Type: kind, Status: of, Reason: reason, Message: message}}
}

func agentPod(node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "berth-system", Name: "agent-" + node, Labels: map[string]string{nameLabel: agentName}},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

func readyNode(name string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
	}
}

func registered(name string) *storagev1.CSINode {
	return &storagev1.CSINode{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: berth.DriverName, NodeID: name}}},
	}
}

func gib(n int64) *resource.Quantity { return resource.NewQuantity(n<<30, resource.BinarySI) }

func claimOf(name, class, volume string) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeName: volume,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: *gib(1)}},
		},
	}
	if class != "" {
		c.Spec.StorageClassName = &class
	}
	return c
}

func podOf(name, node, claim string) *corev1.Pod {
	pod := agentPod(node)
	pod.Namespace, pod.Name, pod.Labels, pod.UID = "default", name, nil, types.UID("uid-"+name)
	pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}}
	return pod
}

func newCluster() *cluster {
	delayed := storagev1.VolumeBindingWaitForFirstConsumer
	replicas := int32(2)
	c := &cluster{objects: map[string]client.Object{}}
	c.add(
		readyNode("node1"), readyNode("node2"), agentPod("node1"), agentPod("node2"), registered("node1"), registered("node2"),
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "berth-system", Name: provisionerName}, Spec: appsv1.DeploymentSpec{Replicas: &replicas}, Status: appsv1.DeploymentStatus{ReadyReplicas: 2}},
		&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "berth-system", Name: agentName}, Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: 2, NumberReady: 2}},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast"}, Provisioner: berth.DriverName, VolumeBindingMode: &delayed, Parameters: map[string]string{"mode": "lvm", "pool": "fast"}},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "misspelt"}, Provisioner: berth.DriverName, VolumeBindingMode: &delayed, Parameters: map[string]string{"mode": "lvm", "pool": "fast", "wipee": "none"}},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "theirs"}, Provisioner: "other.example.com"},
		&storagev1.CSIStorageCapacity{
			ObjectMeta: metav1.ObjectMeta{Namespace: "berth-system", Name: "c1"}, StorageClassName: "fast", Capacity: gib(5), MaximumVolumeSize: gib(5),
			NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{berth.TopologyKeyNode: "node1"}},
		},
		&berth.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: "fast"}, Spec: berth.PoolSetSpec{Kind: berth.PoolLVM}},
		&berth.Pool{
			ObjectMeta: metav1.ObjectMeta{Name: "fast-node1"}, Spec: berth.PoolSpec{NodeName: "node1", PoolSetName: "fast", Kind: berth.PoolLVM},
			Status: berth.PoolStatus{
				State: berth.PoolHealthy, Type: "linear", VolumeCount: 1, Capacity: gib(10), Allocated: gib(5), Free: gib(5),
				Conditions: condition(berth.PoolReady, true, "PoolReady", "volumes can be made"),
			},
		},
		&berth.BlockDevice{
			ObjectMeta: metav1.ObjectMeta{Name: "bd-1"}, Spec: berth.BlockDeviceSpec{NodeName: "node1", ClaimRef: &berth.BlockDeviceClaimRef{Kind: "Pool", Name: "fast-node1"}},
			Status: berth.BlockDeviceStatus{Path: "/dev/sdb", SizeBytes: 10 << 30, Serial: "S1", ClaimState: "Claimed", Conditions: condition(berth.BlockDeviceUsable, false, "Claimed", "pool fast-node1 has it")},
		},
		&berth.BlockDevice{
			ObjectMeta: metav1.ObjectMeta{Name: "bd-2"}, Spec: berth.BlockDeviceSpec{NodeName: "node1"},
			Status: berth.BlockDeviceStatus{Path: "/dev/sdc", SizeBytes: 1536 << 20, Serial: "S2", Model: "Cheetah", Conditions: condition(berth.BlockDeviceUsable, false, "InUse", "it has a partition table (gpt)")},
		},
		&berth.BlockDevice{
			ObjectMeta: metav1.ObjectMeta{Name: "bd-3"}, Spec: berth.BlockDeviceSpec{NodeName: "node2"},
			Status: berth.BlockDeviceStatus{Path: "/dev/sdc", SizeBytes: 1 << 30, Conditions: condition(berth.BlockDeviceUsable, true, "Usable", "it is blank")},
		},
		claimOf("data", "fast", "pv-data"), podOf("db", "node1", "data"),
		&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-data"}, Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: berth.DriverName, VolumeHandle: "pv-data"}},
		}},
		&berth.LocalVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pv-data"},
			Spec: berth.LocalVolumeSpec{
				NodeName: "node1", Mode: berth.ModeLVM, Pool: "fast", SizeBytes: 1 << 30, ClaimRef: &berth.ClaimReference{Namespace: "default", Name: "data", UID: "uid-data"},
			},
			Status: berth.LocalVolumeStatus{Conditions: condition(berth.LocalVolumeReady, true, "Carved", "it can be used")},
		},
	)
	return c
}

func (c *cluster) add(objects ...client.Object) {
	for _, o := range objects {
		c.objects[strings.Join([]string{typeName(o), o.GetNamespace(), o.GetName()}, "/")] = o
	}
}

// namesOfTests tells the names of kinds, and is only read: a fake client writes kinds that it learns
// into its scheme, so that each has one of its own.
var namesOfTests = sync.OnceValues(newScheme)

func typeName(o client.Object) string {
	scheme, _ := namesOfTests()
	kinds, _, _ := scheme.ObjectKinds(o)
	return kinds[0].Kind
}

func get[T client.Object](c *cluster, key string) T { return c.objects[key].(T) }

// run runs the plugin and returns what it wrote.
func (c *cluster) run(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	api := c.build(t)
	var stdout, stderr strings.Builder
	code = Run(t.Context(), args, Streams{Out: &stdout, Err: &stderr}, func(Options) (Cluster, error) { return Cluster{Client: api}, nil })
	return code, stdout.String(), stderr.String()
}

// build makes the API of it.
func (c *cluster) build(t *testing.T) client.WithWatch {
	t.Helper()
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	builder := fake.NewClientBuilder().WithScheme(scheme)
	for _, o := range c.objects {
		// It writes versions into what it is given, which other tests may have as well.
		builder = builder.WithObjects(o.DeepCopyObject().(client.Object))
	}
	return builder.Build()
}

func TestStatus(t *testing.T) {
	t.Parallel()
	c := newCluster()
	code, out, _ := c.run(t, "status")
	if code != exitWell || !strings.Contains(out, "Nothing is wrong.") {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	for _, line := range []string{"Provisioner   2 of 2 ready", "Agents        2 of 2 ready", "Pools         1 Healthy", "Volumes       1 ready", "Disks         1 free, 1 in use, 1 not usable"} {
		if !strings.Contains(out, line) {
			t.Errorf("it does not say %q:\n%s", line, out)
		}
	}
	agent := get[*corev1.Pod](c, "Pod/berth-system/agent-node2")
	agent.Status = corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{Name: "node-agent", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 5m"}}}}}
	pool := get[*berth.Pool](c, "Pool//fast-node1")
	pool.Status.State, pool.Status.Conditions = berth.PoolDegraded, condition(berth.PoolReady, true, "NotRedundant", "1 of 2 volumes are not redundant")
	get[*berth.LocalVolume](c, "LocalVolume//pv-data").Status.Conditions = condition(berth.LocalVolumeReady, false, "Missing", "its disk is gone")
	get[*berth.BlockDevice](c, "BlockDevice//bd-3").Status.Conditions = append(get[*berth.BlockDevice](c, "BlockDevice//bd-3").Status.Conditions,
		metav1.Condition{Type: berth.BlockDeviceHealthy, Status: metav1.ConditionFalse, Reason: "SMARTFailing", Message: "it says that it fails"})
	c.add(claimOf("new", "misspelt", ""))
	code, out, _ = c.run(t, "status")
	if code != exitTrouble {
		t.Errorf("exit code %d", code)
	}
	for _, part := range []string{
		"node/node2: AgentNotReady", "CrashLoopBackOff", "pool/fast-node1: NotRedundant", "localvolume/pv-data: Missing", "blockdevice/bd-3: SMARTFailing", "pvc/default/new: Pending", "wipee",
	} {
		if !strings.Contains(out, part) {
			t.Errorf("it does not say %q:\n%s", part, out)
		}
	}
	code, out, _ = c.run(t, "status", "-o", "json")
	var o overview
	if err := json.Unmarshal([]byte(out), &o); err != nil || code != exitTrouble || len(o.Troubles) != 5 || o.Pools["Degraded"] != 1 {
		t.Errorf("exit code %d, %v, %+v", code, err, o)
	}
	get[*berth.LocalVolume](c, "LocalVolume//pv-data").Status.Conditions = condition(berth.LocalVolumeReady, true, "Carved", "the volume stands")
	withCondition(c, berth.LocalVolumeHealthy, "DiskGone", "disk S1 is gone")
	if code, out, _ = c.run(t, "status"); code != exitTrouble || !strings.Contains(out, "1 not well") || !strings.Contains(out, "localvolume/pv-data: DiskGone") {
		t.Errorf("a volume that is not well: exit code %d\n%s", code, out)
	}
	if code, out, _ = c.run(t, "volumes"); code != exitWell || !strings.Contains(out, "DiskGone") || strings.Contains(out, "Carved") {
		t.Errorf("a volume that is not well: exit code %d\n%s", code, out)
	}
	c.objects = map[string]client.Object{}
	code, out, _ = c.run(t, "status")
	if code != exitTrouble || !strings.Contains(out, "not installed") || !strings.Contains(out, "--berth-namespace") {
		t.Errorf("nothing is installed: exit code %d\n%s", code, out)
	}
}

// While the agent of a node is replaced, or was evicted, there is more than one pod of it: the one
// that does the work, or is about to, says how it is.
func TestAgentsOfOneNode(t *testing.T) {
	t.Parallel()
	waits := corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{Name: "node-agent", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}}}}
	going := func(pod *corev1.Pod) {
		pod.DeletionTimestamp, pod.Finalizers = &metav1.Time{Time: time.Unix(1000, 0)}, []string{"foregroundDeletion"}
	}
	notReady := func(pod *corev1.Pod) { pod.Status = waits }
	for name, tc := range map[string]struct {
		pod, other func(*corev1.Pod)
		want       string // the pod that is said not to be ready
	}{
		"the old one goes, the new one is ready":      {func(*corev1.Pod) {}, func(p *corev1.Pod) { going(p); notReady(p) }, ""},
		"the old one goes, the new one fails":         {notReady, func(p *corev1.Pod) { going(p); notReady(p) }, "agent-node2"},
		"the old one is ready for a moment":           {notReady, going, ""},
		"it was evicted, and the new one fails":       {notReady, func(p *corev1.Pod) { p.Status = corev1.PodStatus{Phase: corev1.PodFailed} }, "agent-node2"},
		"it was evicted, and the new one is ready":    {func(*corev1.Pod) {}, func(p *corev1.Pod) { p.Status = corev1.PodStatus{Phase: corev1.PodFailed} }, ""},
		"both fail, and the other one is the younger": {notReady, func(p *corev1.Pod) { notReady(p); p.CreationTimestamp = metav1.Unix(1000, 0) }, "other"},
	} {
		for _, other := range []string{"a-other", "z-other"} { // before it and after it in the list
			t.Run(name+", "+other, func(t *testing.T) {
				t.Parallel()
				c := newCluster()
				tc.pod(get[*corev1.Pod](c, "Pod/berth-system/agent-node2"))
				pod := agentPod("node2")
				pod.Name = other
				tc.other(pod)
				c.add(pod)
				want := strings.Replace(tc.want, "other", other, 1)
				_, out, _ := c.run(t, "status")
				if want == "" && strings.Contains(out, "AgentNotReady") || want != "" && (!strings.Contains(out, "pod "+want+":") || strings.Count(out, "AgentNotReady") != 1) {
					t.Errorf("it does not say of %q that it is not ready:\n%s", want, out)
				}
			})
		}
	}
}

func TestLists(t *testing.T) {
	t.Parallel()
	c := newCluster()
	for what, lines := range map[string][]string{
		"disks": {
			"NODE    PATH       SIZE    SERIAL   CLAIM     OWNER             USABLE   WHY",
			"node1   /dev/sdb   10Gi    S1       Claimed   Pool/fast-node1   no       pool fast-node1 has it",
			"node1   /dev/sdc   1.5Gi   S2       -         -                 no       it has a partition table (gpt)",
			"node2   /dev/sdc   1Gi     -        -         -                 yes      it is blank",
		},
		"pools": {
			"NODE    POOL         TYPE     STATE     VOLUMES   PROMISED   FREE   CAPACITY   WHY",
			"node1   fast-node1   linear   Healthy   1         50%        5Gi    10Gi       volumes can be made",
		},
		"volumes": {
			"CLAIM          NODE    MODE   POOL   SIZE   PODS   STATE",
			"default/data   node1   lvm    fast   1Gi    db     Carved",
		},
	} {
		code, out, errs := c.run(t, what)
		if want := strings.Join(lines, "\n") + "\n"; code != exitWell || out != want || errs != "" {
			t.Errorf("%s: exit code %d, %s\n%s\nwant\n%s", what, code, errs, out, want)
		}
		code, out, _ = c.run(t, what, "-o", "json")
		var rows []map[string]any
		if err := json.Unmarshal([]byte(out), &rows); err != nil || code != exitWell || len(rows) != len(lines)-1 {
			t.Errorf("%s as JSON: exit code %d, %v\n%s", what, code, err, out)
		}
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	c := newCluster()
	for _, args := range [][]string{{}, {"stat"}, {"why"}, {"why", "data"}, {"why", "pod/x"}, {"why", "pvc/"}, {"status", "now"}, {"disks", "-o", "yaml"}, {"--colour"}} {
		if code, out, errs := c.run(t, args...); code != exitUsage || out != "" || !strings.HasPrefix(errs, "kubectl berth: ") {
			t.Errorf("%q: exit code %d, %q, %q", args, code, out, errs)
		}
	}
	if code, _, errs := c.run(t, "--help"); code != exitWell || !strings.Contains(errs, "why") {
		t.Errorf("exit code %d, %q", code, errs)
	}
	var stdout, stderr strings.Builder
	code := Run(t.Context(), []string{"status"}, Streams{Out: &stdout, Err: &stderr}, func(Options) (Cluster, error) { return Cluster{}, errors.New("no cluster") })
	if code != exitUnasked || !strings.Contains(stderr.String(), "no cluster") {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
}

func TestBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0", 1023: "1023", 1024: "1Ki", 1536: "1.5Ki", 10<<30 - 1: "9.9Gi", 10 << 30: "10Gi", 1 << 60: "1024Pi"} {
		if got := bytes(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}
