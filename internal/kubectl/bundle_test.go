// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"archive/tar"
	gobytes "bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// planted is a secret that stands wherever somebody may have put one.
const planted = "hunter2hunter2XYZ"

const plantedToken = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJl"

func packed(t *testing.T, text string) []byte {
	t.Helper()
	var b gobytes.Buffer
	zip := gzip.NewWriter(&b)
	if _, err := zip.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// plant puts the secret into everything that a bundle is made of, and what must be in it.
func plant(t *testing.T, c *cluster) {
	t.Helper()
	annotations := map[string]string{
		"kubectl.kubernetes.io/last-applied-configuration": `{"passphrase":"` + planted + `"}`,
		"example.com/note":                planted,
		"berth.dev/note":                  "password=" + planted,
		"volume.kubernetes.io/storage-ok": "kept",
	}
	for _, o := range c.objects {
		o.SetAnnotations(annotations)
	}
	agent := get[*corev1.Pod](c, "Pod/berth-system/agent-node1")
	agent.Spec.Containers = []corev1.Container{{
		Name: "agent", Image: "berth:1", Args: []string{"--log-level=debug", "--api-token", planted, "--password=" + planted},
		Env: []corev1.EnvVar{
			{Name: "ANY", Value: planted},
			{Name: "REF", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "that-secret"}, Key: "that-key"}}},
		},
	}}
	agent.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "agent", Image: "berth:1", ImageID: "sha256:1", RestartCount: 1}}
	class := get[*storagev1.StorageClass](c, "StorageClass//fast")
	class.Parameters["passphrase"] = planted
	class.Parameters["csi.storage.k8s.io/node-stage-secret-name"] = "luks-keys"
	pv := get[*corev1.PersistentVolume](c, "PersistentVolume//pv-data")
	pv.Spec.CSI.NodeStageSecretRef = &corev1.SecretReference{Namespace: "vault", Name: "luks-keys"}
	pv.Spec.CSI.VolumeAttributes = map[string]string{"someToken": planted}
	c.add(
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "berth-system", Name: "luks-keys"}, Data: map[string][]byte{"passphrase": []byte(planted)}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "berth-system", Name: berth.ConfigMapName}, Data: map[string]string{"filters": "exclude: /dev/loop\npassword: " + planted + "\n"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "berth-system", Name: "theirs"}, Data: map[string]string{"a": planted}},
		&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: "berth-system", Name: "lvm-metadata.node1.fast.0123456789"},
			BinaryData: map[string][]byte{"volumeGroup": packed(t, "vg { seqno = 7 }\ntoken = \""+planted+"\"\n"), "thinPool": []byte(planted)},
		},
		&corev1.Event{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e1"}, Message: "it said Authorization: Bearer " + planted,
			InvolvedObject: corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: "default", Name: "data"},
		},
		&corev1.Event{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e2"}, Message: "of somebody else",
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "theirs"},
		},
		&corev1.Event{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e3"}, Message: "of the user of a claim",
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "db"},
		},
	)
	node := get[*corev1.Node](c, "Node//node1")
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.7"}}
}

const plantedLog = `{"msg":"carved","passphrase":"` + planted + `"}
{"msg":"request {\"token\":\"` + planted + `\"}"}
PASSWORD=` + planted + ` https://user:` + planted + `@example.com/ ` + plantedToken + `
-----BEGIN RSA PRIVATE KEY-----
` + planted + `
-----END RSA PRIVATE KEY-----
the last line
`

// api is the cluster with the logs of its containers.
func (c *cluster) api(t *testing.T, funcs interceptor.Funcs) Cluster {
	t.Helper()
	get, list := funcs.Get, funcs.List
	funcs.Get = func(ctx context.Context, api client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
		if _, is := o.(*corev1.Secret); is || o.GetObjectKind().GroupVersionKind().Kind == "Secret" {
			t.Errorf("Secret %s was read", key)
		}
		if get != nil {
			return get(ctx, api, key, o, opts...)
		}
		return api.Get(ctx, key, o, opts...)
	}
	funcs.List = func(ctx context.Context, api client.WithWatch, o client.ObjectList, opts ...client.ListOption) error {
		if _, is := o.(*corev1.SecretList); is || o.GetObjectKind().GroupVersionKind().Kind == "SecretList" {
			t.Error("Secrets were listed")
		}
		if list != nil {
			return list(ctx, api, o, opts...)
		}
		return api.List(ctx, o, opts...)
	}
	return Cluster{
		Client: interceptor.NewClient(c.build(t), funcs),
		Logs: func(_ context.Context, pod client.ObjectKey, o *corev1.PodLogOptions) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(fmt.Sprintf("of %s %s %t\n%s", pod, o.Container, o.Previous, plantedLog))), nil
		},
		Version: func() (string, error) { return "v1.36.0", nil },
	}
}

func bundleOf(t *testing.T, api Cluster, args ...string) (code int, files map[string]string, names []string, said string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "b.tar.gz")
	var out, errs strings.Builder
	code = Run(t.Context(), append([]string{"support-bundle", "-o", file}, args...), Streams{Out: &out, Err: &errs}, func(Options) (Cluster, error) { return api, nil })
	said = out.String() + errs.String()
	content, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return code, nil, nil, said
	}
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != bundleMode {
		t.Errorf("the mode is %v, %v", info.Mode(), err)
	}
	files, names = unpacked(t, content)
	return code, files, names, said
}

func unpacked(t *testing.T, content []byte) (files map[string]string, names []string) {
	t.Helper()
	zip, err := gzip.NewReader(gobytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for r := tar.NewReader(zip); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, names
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		name, ok := strings.CutPrefix(header.Name, bundleFolder)
		if !ok || header.Mode != bundleMode {
			t.Errorf("%s has mode %o", header.Name, header.Mode)
		}
		files[name] = string(text)
		names = append(names, name)
	}
}

func TestBundle(t *testing.T) {
	t.Parallel()
	c := newCluster()
	plant(t, c)
	code, files, names, said := bundleOf(t, c.api(t, interceptor.Funcs{}))
	if code != exitWell || !strings.Contains(said, "Look at it before you hand it on") {
		t.Fatalf("exit code %d: %s\n%s", code, said, files["errors.txt"])
	}
	for name, text := range files {
		for _, secret := range []string{planted, plantedToken, "192.0.2.7", "last-applied"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds %s:\n%s", name, secret, text)
			}
		}
	}
	for name, parts := range map[string][]string{
		"README.txt":                                          {"any Secret"},
		"versions.txt":                                        {"API server:    v1.36.0", "agent-node1/agent: berth:1 (sha256:1)"},
		"errors.txt":                                          {},
		"summary/status.txt":                                  {"Provisioner"},
		"summary/volumes.txt":                                 {"default/data"},
		"berth/poolsets.yaml":                                 {"name: fast"},
		"berth/pools.yaml":                                    {"name: fast-node1", "volumes can be made"},
		"berth/blockdevices.yaml":                             {"name: bd-1", "name: bd-2", "name: bd-3"},
		"berth/localvolumes.yaml":                             {"name: pv-data", "volume.kubernetes.io/storage-ok: kept", "example.com/note: REDACTED"},
		"kubernetes/storageclasses.yaml":                      {"name: fast", "passphrase: REDACTED", "node-stage-secret-name: luks-keys"},
		"kubernetes/persistentvolumes.yaml":                   {"name: luks-keys", "namespace: vault", "someToken: REDACTED"},
		"kubernetes/persistentvolumeclaims.yaml":              {"name: data"},
		"kubernetes/csistoragecapacities.yaml":                {"name: c1"},
		"kubernetes/csinodes.yaml":                            {"name: node2"},
		"kubernetes/nodes.yaml":                               {"name: node1", "type: Ready"},
		"kubernetes/events.yaml":                              {"name: e1", "name: e3"},
		"system/deployments.yaml":                             {provisionerName},
		"system/daemonsets.yaml":                              {agentName},
		"system/pods.yaml":                                    {"name: that-secret", "key: that-key", "--log-level=debug"},
		"system/configmaps.yaml":                              {"exclude: /dev/loop", "characters of base64"},
		"lvm-metadata/lvm-metadata.node1.fast.0123456789.txt": {"seqno = 7"},
		"logs/agent-node1/agent.log":                          {"of berth-system/agent-node1 agent false", "carved", "the last line"},
		"logs/agent-node1/agent.previous.log":                 {"agent true", "the last line"},
	} {
		text, ok := files[name]
		if !ok {
			t.Errorf("there is no %s, only %s", name, names)
		}
		for _, part := range parts {
			if !strings.Contains(text, part) {
				t.Errorf("%s does not say %q:\n%s", name, part, text)
			}
		}
	}
	for name, other := range map[string]string{
		"kubernetes/storageclasses.yaml": "theirs", "kubernetes/events.yaml": "somebody else", "system/configmaps.yaml": "theirs", "system/pods.yaml": "name: db",
	} {
		if strings.Contains(files[name], other) {
			t.Errorf("%s holds what is not Berth's: %s", name, files[name])
		}
	}
	_, again, namesAgain, _ := bundleOf(t, c.api(t, interceptor.Funcs{}))
	if !slices.Equal(names, namesAgain) {
		t.Errorf("it was %s and is %s", names, namesAgain)
	}
	for name := range files {
		if name != "versions.txt" && files[name] != again[name] {
			t.Errorf("%s was\n%s\nand is\n%s", name, files[name], again[name])
		}
	}
}

func TestBundleWithWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	c := newCluster()
	plant(t, c)
	forbidden := func(kinds ...string) interceptor.Funcs {
		return interceptor.Funcs{List: func(ctx context.Context, api client.WithWatch, o client.ObjectList, opts ...client.ListOption) error {
			gvk, err := api.GroupVersionKindFor(o)
			if err == nil && (len(kinds) == 0 || slices.Contains(kinds, gvk.Kind)) {
				return apierrors.NewForbidden(schema.GroupResource{Resource: strings.ToLower(gvk.Kind)}, "", errors.New("no, token="+planted))
			}
			return api.List(ctx, o, opts...)
		}}
	}
	api := c.api(t, forbidden("NodeList"))
	api.Logs = func(_ context.Context, _ client.ObjectKey, o *corev1.PodLogOptions) (io.ReadCloser, error) {
		if o.Previous {
			return nil, apierrors.NewBadRequest("previous terminated container not found")
		}
		return nil, errors.New("kubelet is away")
	}
	code, files, _, said := bundleOf(t, api)
	if code != exitTrouble || strings.Contains(said+files["errors.txt"], planted) {
		t.Errorf("exit code %d: %s", code, said)
	}
	for _, part := range []string{"kubernetes/nodes.yaml: nodelist is forbidden", "logs/agent-node1/agent.log: kubelet is away"} {
		if !strings.Contains(said, part) || !strings.Contains(files["errors.txt"], part) {
			t.Errorf("it does not say %q:\n%s\n%s", part, said, files["errors.txt"])
		}
	}
	if files["berth/pools.yaml"] == "" {
		t.Error("the pools are missing")
	}
	if strings.Contains(said, "previous") {
		t.Errorf("a log that is there no more is no failure: %s", said)
	}
	code, files, _, said = bundleOf(t, c.api(t, forbidden()))
	if code != exitUnasked || files != nil || !strings.Contains(said, "nothing of the cluster could be read") {
		t.Errorf("exit code %d, %d files: %s", code, len(files), said)
	}
}

func TestBundleFile(t *testing.T) {
	t.Parallel()
	c := newCluster()
	there := filepath.Join(t.TempDir(), "there.tar.gz")
	if err := os.WriteFile(there, []byte("dear"), bundleMode); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		file string
		says string
	}{
		"another form":    {file: "json", says: "ends with .tar.gz"},
		"a file is there": {file: there, says: "is there already"},
	} {
		code, _, errs := c.run(t, "support-bundle", "-o", tc.file)
		if code != exitUsage || !strings.Contains(errs, tc.says) {
			t.Errorf("%s: exit code %d, %s", name, code, errs)
		}
	}
	if content, err := os.ReadFile(there); err != nil || string(content) != "dear" {
		t.Errorf("the file was overwritten: %q, %v", content, err)
	}
	if code, _, errs := c.run(t, "support-bundle", "-o", filepath.Join(t.TempDir(), "no", "b.tgz")); code != exitUnasked {
		t.Errorf("a folder that is not there: exit code %d, %s", code, errs)
	}
	var out, errs strings.Builder
	code := Run(t.Context(), []string{"support-bundle", "-o", "-"}, Streams{Out: &out, Err: &errs}, func(Options) (Cluster, error) { return c.api(t, interceptor.Funcs{}), nil })
	if files, _ := unpacked(t, []byte(out.String())); code != exitWell || errs.String() != "" || files["berth/pools.yaml"] == "" {
		t.Errorf("exit code %d, %s", code, errs.String())
	}
}

func TestRedactText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"pool fast is Degraded: 1 of 2 disks":            "pool fast is Degraded: 1 of 2 disks",
		`secretName: luks-keys, secret-namespace="v"`:    `secretName: luks-keys, secret-namespace="v"`,
		"passphrase=abc def":                             "passphrase=REDACTED def",
		`{"newPassphrase": "a b", "size": 5}`:            `{"newPassphrase": REDACTED, "size": 5}`,
		`{\"token\":\"a b\",\"n\":1}`:                    `{\"token\":REDACTED,\"n\":1}`,
		"passphrase: correct horse battery\nsize: 5":     "passphrase: REDACTED\nsize: 5",
		"password: |\n  a b\n  c\nsize: 5":               "password: REDACTED\nsize: 5",
		"tokens:\n  - a b\n  - c\nsize: 5":               "tokens:\n  REDACTED\nsize: 5",
		"token: {a: b}":                                  "token: {a: b}",
		"pods with a secretRef: {name: luks-keys} go":    "pods with a secretRef: {name: luks-keys} go",
		"'apiKey': 'a b', 'size': 5":                     "'apiKey': REDACTED, 'size': 5",
		`password = "a \" b" next`:                       `password = REDACTED next`,
		"--bootstrap-token abc --verbose":                "--bootstrap-token REDACTED --verbose",
		"Authorization: Basic dXNlcjpwYXNz\nnext":        "Authorization: REDACTED\nnext",
		"https://u:p@example.com/x":                      "https://REDACTED@example.com/x",
		"join abcdef.0123456789abcdef now":               "join REDACTED now",
		"MIIE\n-----END PRIVATE KEY-----\nok":            "REDACTED\nok",
		"-----BEGIN EC PRIVATE KEY-----\nMHc\nno end":    "REDACTED",
		"uid 01234567-89ab-cdef-0123-456789abcdef, vg-0": "uid 01234567-89ab-cdef-0123-456789abcdef, vg-0",
	} {
		if got := redactText(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

func TestTailBeginsWithALine(t *testing.T) {
	t.Parallel()
	end := &tail{most: 20}
	for i := range 50 {
		if _, err := fmt.Fprintf(end, "line %d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	if got := string(end.content()); got != "line 48\nline 49\n" {
		t.Errorf("it kept %q", got)
	}
	whole := &tail{most: 20}
	if _, err := io.WriteString(whole, "one\ntwo"); err != nil || string(whole.content()) != "one\ntwo" {
		t.Errorf("it kept %q", whole.content())
	}
}
