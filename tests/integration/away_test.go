// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// etcdCall asks the apiserver's etcd through its JSON gateway (etcd.io, "gRPC gateway").
func etcdCall(t *testing.T, method string, body, answer any) {
	t.Helper()
	content, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.etcd+"/v3/kv/"+method, bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("etcd %s: %s", method, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		t.Fatal(err)
	}
}

// backup is what etcd has below a prefix, to be put back as it is: with UIDs, status and
// finalizers, which no request to the apiserver could.
type backup struct {
	t      *testing.T
	prefix string
	values map[string]string // both in base64
}

// backUp keeps the objects of Berth whose resource and name begin so.
func backUp(t *testing.T, prefix string) *backup {
	t.Helper()
	b := &backup{t: t, prefix: "/registry/berth.dev/" + prefix}
	b.values = b.read()
	if len(b.values) == 0 {
		t.Fatalf("nothing in etcd begins with %s", b.prefix)
	}
	return b
}

func (b *backup) read() map[string]string {
	b.t.Helper()
	end := b.prefix[:len(b.prefix)-1] + string(b.prefix[len(b.prefix)-1]+1)
	var found struct {
		KVs []struct{ Key, Value string } `json:"kvs"`
	}
	etcdCall(b.t, "range", map[string]string{"key": encode(b.prefix), "range_end": encode(end)}, &found)
	values := map[string]string{}
	for _, kv := range found.KVs {
		values[kv.Key] = kv.Value
	}
	return values
}

// restore makes etcd as it was: what was made since vanishes, what was deleted is back.
func (b *backup) restore() {
	b.t.Helper()
	for key := range b.read() {
		if _, then := b.values[key]; !then {
			etcdCall(b.t, "deleterange", map[string]string{"key": key}, &struct{}{})
		}
	}
	for key, value := range b.values {
		etcdCall(b.t, "put", map[string]string{"key": key, "value": value}, &struct{}{})
	}
}

// forgetInEtcd takes objects out of etcd as if they had never been made.
func forgetInEtcd(t *testing.T, prefix string) {
	t.Helper()
	for key := range backUp(t, prefix).values {
		etcdCall(t, "deleterange", map[string]string{"key": key}, &struct{}{})
	}
}

func encode(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// directories are the volumes on the agent's disk.
func (a *agentProcess) directories() string {
	a.t.Helper()
	entries, err := os.ReadDir(filepath.Join(a.dir, "volumes"))
	if err != nil {
		a.t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return strings.Join(names, " ")
}

// The apiserver goes away, the agent is killed meanwhile, and what comes back is an etcd
// of an hour ago: pods start and stop all the time, and no data are lost by it.
func TestAgentWhileTheAPIServerIsAway(t *testing.T) {
	a := newAgent(t, "it-away")
	a.begin()
	a.newDirectories("it-away")
	kept := a.newPod(a.newDirectory("it-away-kept", "it-away").Name)
	gone := a.newDirectory("it-away-gone", "it-away")
	kept.mustStart("")

	anHourAgo := backUp(t, "localvolumes/it-away-")
	late := a.newPod(a.newDirectory("it-away-late", "it-away").Name)
	late.mustStart("")
	if err := as(t, provisioner, "").Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	a.eventually("the volume is gone", func() bool { return !exists(t, gone, gone.Name) })
	latest := backUp(t, "localvolumes/it-away-late")

	a.wire.cut()
	for _, what := range []string{"which had talked to the apiserver", "which has never seen the apiserver"} {
		t.Run("an agent "+what, func(t *testing.T) {
			for _, p := range []*pod{kept, late} {
				p.holds(p.volume) // it was used all the time
				p.mustStop()
				p.mustStart(p.volume)
				p.mustStart(p.volume) // again, as kubelet does after its own restart
			}
		})
		a.end()
		a.begin()
	}

	anHourAgo.restore()
	forgetInEtcd(t, "pools/it-away-") // and of before the pool was made
	a.wire.join()
	a.eventually("the agent misses the object of a volume", func() bool {
		return strings.Contains(a.log.String(), "A volume has no LocalVolume; it is kept as it is")
	})
	if exists(t, &v1alpha1.LocalVolume{}, "it-away-late") {
		t.Error("the agent has made a LocalVolume")
	}
	for _, p := range []*pod{kept, late} {
		p.holds(p.volume)
		p.mustStop()
		p.mustStart(p.volume)
	}
	// Its data were wiped, as it was asked for; an empty volume must not take their place.
	a.awaitReady("it-away-gone", metav1.ConditionFalse, v1alpha1.ReasonMissing)
	if err := a.newPod("it-away-gone").start(); err == nil {
		t.Error("a pod has got a volume whose data are gone")
	}
	a.awaitReady("it-away-kept", metav1.ConditionTrue, v1alpha1.ReasonCarved)
	a.eventually("the pool is known again", func() bool {
		pool := &v1alpha1.Pool{}
		return exists(t, pool, "it-away-"+a.node) && pool.Status.State == v1alpha1.PoolHealthy
	})

	// The object reappears, as when a younger backup is found.
	latest.restore()
	a.awaitReady("it-away-late", metav1.ConditionTrue, v1alpha1.ReasonCarved)
	late.holds(late.volume)
	late.mustStop()
	late.mustStart(late.volume)

	// All goes its way again: what is deleted now is deleted.
	for _, p := range []*pod{kept, late} {
		p.mustStop()
		lv := &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: p.volume}}
		if err := as(t, provisioner, "").Delete(t.Context(), lv); err != nil {
			t.Fatal(err)
		}
		a.eventually("volume "+p.volume+" is gone", func() bool { return !exists(t, lv, lv.Name) })
	}
	if left := a.directories(); strings.Contains(left, "it-away") {
		t.Errorf("left on the disk: %s", left)
	}
	a.end()
}
