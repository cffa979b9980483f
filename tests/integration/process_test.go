// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// process is cmd/provisioner, running under the service account and the RBAC of
// deploy/.
type process struct {
	t      *testing.T
	binary string
	args   []string
	env    []string
	socket string
	http   string

	cmd *exec.Cmd
	log *lockedBuffer
}

// newProcess builds the command and gives its service account its rights.
func newProcess(t *testing.T) *process {
	t.Helper()
	apply(t, "rbac/provisioner.yaml", "rbac/bindings.yaml")
	dir := t.TempDir()
	p := &process{t: t, binary: filepath.Join(dir, "provisioner"), socket: filepath.Join(dir, "csi.sock"), http: freeAddress(t)}
	// Without grpc's tracing pages, which need templates, the linker can drop the
	// methods that nobody calls: half of the program.
	build := exec.CommandContext(t.Context(), "go", "build", "-tags=grpcnotrace", "-o", p.binary, "../../cmd/provisioner")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	p.args = []string{"--namespace=" + namespace, "--csi-socket=" + p.socket, "--http-address=" + p.http, "--provision-timeout=10s", "--log-format=text", "--log-level=info"}
	p.env = append(os.Environ(), "KUBECONFIG="+writeKubeconfig(t, dir, provisioner))
	return p
}

// writeKubeconfig acts as a user without being one: impersonation is judged by
// RBAC like the user itself.
func writeKubeconfig(t *testing.T, dir, user string) string {
	t.Helper()
	tls := server.config.TLSClientConfig
	config := clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: server.config.Host, CertificateAuthorityData: tls.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {ClientCertificateData: tls.CertData, ClientKeyData: tls.KeyData, Impersonate: user}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}
	path := filepath.Join(dir, "kubeconfig")
	if err := clientcmd.WriteToFile(config, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// replica is a second process of the same command.
func (p *process) replica() *process {
	p.t.Helper()
	other := &process{t: p.t, binary: p.binary, env: p.env, socket: filepath.Join(p.t.TempDir(), "csi.sock"), http: freeAddress(p.t)}
	for _, arg := range p.args {
		arg = strings.Replace(arg, p.socket, other.socket, 1)
		other.args = append(other.args, strings.Replace(arg, p.http, other.http, 1))
	}
	return other
}

// start runs the process until it leads. A predecessor that was killed leaves its
// lease behind; it is taken away, as time would.
func (p *process) start() {
	p.t.Helper()
	p.launch()
	p.eventually("it leads", func() bool {
		return p.get("/readyz") == "ok\n" && strings.Contains(p.get("/metrics"), `leader_election_master_status{name="berth-provisioner"} 1`)
	})
}

// launch starts the process, which is ended with the test.
func (p *process) launch() {
	p.t.Helper()
	first := p.cmd == nil
	p.log = &lockedBuffer{}
	p.cmd = exec.Command(p.binary, p.args...)
	p.cmd.Env, p.cmd.Stderr, p.cmd.Stdout = p.env, p.log, p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	if first {
		p.t.Cleanup(func() {
			if p.cmd.ProcessState == nil {
				p.kill()
			}
			if p.t.Failed() {
				p.t.Logf("log of the provisioner:\n%s", p.log)
			}
		})
	}
}

// kill ends the process as a power failure would.
func (p *process) kill() {
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Error(err)
	}
	_ = p.cmd.Wait() // it was killed
	lease := kubernetes.NewForConfigOrDie(server.config).CoordinationV1().Leases(namespace)
	if err := lease.Delete(context.Background(), "berth-provisioner", metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		p.t.Error(err)
	}
}

// stop asks the process to end and returns how long it took.
func (p *process) stop() time.Duration {
	p.t.Helper()
	began := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("after SIGTERM: %v", err)
	}
	return time.Since(began)
}

func (p *process) get(path string) string {
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, "http://"+p.http+path, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return ""
	}
	return string(body)
}

func (p *process) eventually(what string, is func() bool) {
	p.t.Helper()
	eventually(p.t, what, is)
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.Tick(20 * time.Millisecond)
	for deadline := time.Now().Add(time.Minute); !is(); <-tick {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// lockedBuffer is written by the process and read by the test.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// numbersAgent plays the agent of a node: it carves out of a number.
type numbersAgent struct {
	node string
	as   client.WithWatch

	mu     sync.Mutex
	free   int64
	carved map[string]int64 // by UID
	paused bool
}

// newNumbersAgent runs until the test ends.
func newNumbersAgent(t *testing.T, node string, freeBytes int64) *numbersAgent {
	t.Helper()
	withWatch, err := client.NewWithWatch(server.config, client.Options{Scheme: server.scheme})
	if err != nil {
		t.Fatal(err)
	}
	a := &numbersAgent{node: node, as: withWatch, free: freeBytes, carved: map[string]int64{}}
	watcher, err := a.as.Watch(t.Context(), &v1alpha1.LocalVolumeList{}, client.MatchingFields{"spec.nodeName": node})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event := range watcher.ResultChan() {
			if lv, ok := event.Object.(*v1alpha1.LocalVolume); ok && event.Type != "DELETED" {
				if err := a.act(lv); err != nil {
					t.Errorf("agent of %s: %v", node, err)
				}
			}
		}
	}()
	t.Cleanup(func() { watcher.Stop(); <-done })
	return a
}

func (a *numbersAgent) volumes() int { a.mu.Lock(); defer a.mu.Unlock(); return len(a.carved) }

func (a *numbersAgent) pause(paused bool) { a.mu.Lock(); defer a.mu.Unlock(); a.paused = paused }

// act spends one request on each change, as the real one does.
func (a *numbersAgent) act(lv *v1alpha1.LocalVolume) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.paused {
		return nil
	}
	ctx := context.Background()
	key := string(lv.UID)
	if lv.DeletionTimestamp != nil {
		a.free += a.carved[key]
		delete(a.carved, key)
		patch := client.MergeFrom(lv.DeepCopy())
		lv.Finalizers = slices.DeleteFunc(lv.Finalizers, func(f string) bool { return f == v1alpha1.AgentFinalizer })
		return client.IgnoreNotFound(a.as.Patch(ctx, lv, patch))
	}
	condition := metav1.Condition{Type: v1alpha1.LocalVolumeReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonCarved, Message: "carved", ObservedGeneration: lv.Generation}
	patch := client.MergeFrom(lv.DeepCopy())
	switch more := lv.Spec.SizeBytes - a.carved[key]; {
	case more == 0:
		return nil
	case more > a.free:
		condition.Status, condition.Reason, condition.Message = metav1.ConditionFalse, v1alpha1.ReasonNoSpace, fmt.Sprintf("%d bytes are free", a.free)
		if a.carved[key] > 0 {
			condition.Type = v1alpha1.LocalVolumeResized
		}
	default:
		a.free -= more
		a.carved[key] = lv.Spec.SizeBytes
		lv.Status.Capacity = resource.NewQuantity(lv.Spec.SizeBytes, resource.BinarySI)
		meta.RemoveStatusCondition(&lv.Status.Conditions, v1alpha1.LocalVolumeResized)
	}
	if !meta.SetStatusCondition(&lv.Status.Conditions, condition) && condition.Status == metav1.ConditionFalse {
		return nil
	}
	return client.IgnoreNotFound(a.as.Status().Patch(ctx, lv, patch))
}

// requests counts what the apiserver was asked about these resources, by verb and
// resource, without lists and watches.
func requests(t *testing.T, resources ...string) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, metric := range apiserverMetric(t, "apiserver_request_total") {
		labels := labelsOf(metric)
		if slices.Contains(resources, labels["resource"]) && !slices.Contains([]string{"LIST", "WATCH", "DELETECOLLECTION"}, labels["verb"]) {
			name := labels["verb"] + " " + labels["resource"]
			if labels["subresource"] != "" {
				name += "/" + labels["subresource"]
			}
			counts[name] += int(metric.GetCounter().GetValue())
		}
	}
	return counts
}

// watches counts who follows the resource at this moment.
func watches(t *testing.T, resource string) int {
	t.Helper()
	count := 0
	for _, metric := range apiserverMetric(t, "apiserver_longrunning_requests") {
		if labels := labelsOf(metric); labels["resource"] == resource && labels["verb"] == "WATCH" {
			count += int(metric.GetGauge().GetValue())
		}
	}
	return count
}

func apiserverMetric(t *testing.T, family string) []*dto.Metric {
	t.Helper()
	body, err := kubernetes.NewForConfigOrDie(server.config).RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return families[family].GetMetric()
}

func labelsOf(metric *dto.Metric) map[string]string {
	labels := map[string]string{}
	for _, pair := range metric.GetLabel() {
		labels[pair.GetName()] = pair.GetValue()
	}
	return labels
}

// since returns what was asked between two counts.
func since(before, after map[string]int) map[string]int {
	diff := maps.Clone(after)
	for name, count := range before {
		if diff[name] -= count; diff[name] == 0 {
			delete(diff, name)
		}
	}
	return diff
}
