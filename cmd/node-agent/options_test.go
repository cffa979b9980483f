// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"
)

func env(values map[string]string) func(string) string {
	return func(key string) string { return values[key] }
}

var podEnv = env(map[string]string{"NODE_NAME": "n1", "POD_NAMESPACE": "berth-system"})

func TestDefaultsAreWhatTheDaemonSetNeeds(t *testing.T) {
	t.Parallel()
	o, err := parseOptions(nil, podEnv)
	if err != nil {
		t.Fatal(err)
	}
	if o.nodeName != "n1" || o.namespace != "berth-system" || o.hostRoot != "/proc/1/root" || o.httpAddress != ":9808" {
		t.Errorf("%+v", o)
	}
	if o.wipeRate.Value() != 0 || o.wipeParallelism != 2 || o.healthInterval != 30*time.Minute || o.trashRate != 10_000 {
		t.Errorf("%+v", o)
	}
	if got := o.endpoint(); got != "/var/lib/kubelet/plugins/berth.dev/csi.sock" {
		t.Errorf("kubelet is told %s", got)
	}
	if got := o.onHost(o.stateDir); got != "/proc/1/root"+o.stateDir {
		t.Errorf("state in %s", got)
	}
}

func TestWrongOptionsAreNamed(t *testing.T) {
	t.Parallel()
	for _, arg := range []string{
		"--node-name=", "--node-name=UPPER", "--node-name=" + strings.Repeat("a", 64), "--namespace=", "--namespace=a.b",
		"--host-root=/host", "--host-root=", "--state-dir=relative", "--state-dir=/a/../b", "--state-dir=/",
		"--csi-socket=/" + strings.Repeat("a", 107), "--kubelet-plugin-dir=/" + strings.Repeat("a", 100),
		"--registration-dir=x", "--http-address=9808", "--log-level=loud", "--log-format=xml",
		"--health-interval=1s", "--health-interval=-1m", "--wipe-parallelism=0", "--wipe-parallelism=65",
		"--wipe-rate=fast", "--wipe-rate=-1Mi", "--wipe-rate=1023Ki",
		"--trash-rate=0", "--trash-rate=-1", "--trash-rate=1000001", "--trash-rate=fast",
	} {
		name, _, _ := strings.Cut(arg, "=")
		if _, err := parseOptions([]string{arg}, podEnv); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", arg, err)
		}
	}
	if _, err := parseOptions([]string{"stray"}, podEnv); err == nil {
		t.Error("a stray argument was taken")
	}
	if _, err := parseOptions(nil, env(nil)); err == nil || !strings.Contains(err.Error(), "$NODE_NAME") || !strings.Contains(err.Error(), "$POD_NAMESPACE") {
		t.Errorf("without environment: %v", err)
	}
}
