// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/internal/provision/provisiontest"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	gib  = int64(1) << 30
	node = "node1"
)

func request(name string, sizeBytes int64) provision.Request {
	spec := berth.LocalVolumeSpec{
		NodeName: node, Mode: berth.ModeLVM, Pool: "fast", SizeBytes: sizeBytes,
		VolumeMode: berth.VolumeFilesystem, FSType: "ext4", Wipe: berth.WipeZero,
		ClaimRef: &berth.ClaimReference{Namespace: "default", Name: "data", UID: "uid-of-" + types.UID(name)},
	}
	return provision.Request{Name: name, Spec: spec, Labels: provision.Labels(spec)}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func nodeObject(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// eventually waits for a condition that no event of the test's own announces.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.Tick(time.Millisecond)
	for deadline := time.Now().Add(10 * time.Second); !is(); <-tick {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// The good case costs one POST and one DELETE; a growth looks at the pool first.
func TestVolumesSpendFewRequests(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	agent := c.NewAgent(t, node, 10*gib)

	lv, err := c.Volumes.Ensure(within(t, 10*time.Second), request("pvc-1", gib))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(lv.Finalizers, []string{berth.AgentFinalizer}) {
		t.Errorf("finalizers %v", lv.Finalizers)
	}
	if lv.Labels["berth.dev/pool"] != "fast" {
		t.Errorf("labels %v", lv.Labels)
	}
	if diff := cmp.Diff([]string{"POST *v1alpha1.LocalVolume"}, c.Requests()); diff != "" {
		t.Errorf("creation (-want +got):\n%s", diff)
	}

	again, err := c.Volumes.Ensure(within(t, 10*time.Second), request("pvc-1", gib))
	if err != nil || again.UID != lv.UID {
		t.Errorf("repeated creation returned %v, %v", again, err)
	}
	if got := c.Requests(); len(got) != 0 {
		t.Errorf("repeated creation asked %v", got)
	}

	if _, err := c.Volumes.Grow(within(t, 10*time.Second), "pvc-1", 2*gib); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"LIST *v1alpha1.PoolList", "PATCH *v1alpha1.LocalVolume"}, c.Requests()); diff != "" {
		t.Errorf("growth (-want +got):\n%s", diff)
	}

	if err := c.Volumes.Delete(within(t, 10*time.Second), "pvc-1"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"DELETE *v1alpha1.LocalVolume"}, c.Requests()); diff != "" {
		t.Errorf("deletion (-want +got):\n%s", diff)
	}
	if err := c.Volumes.Delete(within(t, 10*time.Second), "pvc-1"); err != nil {
		t.Errorf("repeated deletion: %v", err)
	}
	if got := c.Requests(); len(got) != 0 {
		t.Errorf("repeated deletion asked %v", got)
	}
	if agent.Carved() != 0 || agent.Made() != 1 {
		t.Errorf("the agent holds %d and made %d", agent.Carved(), agent.Made())
	}
}

func TestEnsureReportsAFinalAnswerWithNothingLeft(t *testing.T) {
	t.Parallel()
	for reason, sentinel := range map[string]error{
		berth.ReasonNoSpace:      volume.ErrNoSpace,
		berth.ReasonPoolNotFound: volume.ErrPoolUnavailable,
		berth.ReasonToolMissing:  volume.ErrToolMissing,
		berth.ReasonInvalid:      volume.ErrInvalid,
	} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			c := provisiontest.New(t)
			agent := c.NewAgent(t, node, 10*gib)
			agent.Answer(func(*berth.LocalVolume) (string, string) { return reason, "because" })
			_, err := c.Volumes.Ensure(within(t, 10*time.Second), request("pvc-1", gib))
			var failure *provision.Failure
			if !errors.As(err, &failure) || failure.Reason != reason || failure.Node != node || !errors.Is(err, sentinel) {
				t.Fatalf("got %#v", err)
			}
			if err := c.Backdoor.Get(t.Context(), types.NamespacedName{Name: "pvc-1"}, &berth.LocalVolume{}); !apierrors.IsNotFound(err) {
				t.Errorf("the LocalVolume is left: %v", err)
			}
			if diff := cmp.Diff([]string{"POST *v1alpha1.LocalVolume", "DELETE *v1alpha1.LocalVolume"}, c.Requests()); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
	}
}

// What the agent may still change its mind about is an answer only to those who
// can go elsewhere.
func TestEnsureGivesUpOnlyWhenAsked(t *testing.T) {
	t.Parallel()
	for _, giveUp := range []bool{true, false} {
		c := provisiontest.New(t, nodeObject(node))
		agent := c.NewAgent(t, node, 10*gib)
		agent.Answer(func(*berth.LocalVolume) (string, string) { return berth.ReasonPoolNotReady, "a disk is missing" })
		req := request("pvc-1", gib)
		req.GiveUp = giveUp
		_, err := c.Volumes.Ensure(within(t, 4*time.Second), req)
		var failure *provision.Failure
		var pending *provision.Pending
		switch {
		case giveUp && (!errors.As(err, &failure) || failure.Reason != berth.ReasonPoolNotReady):
			t.Errorf("giving up returned %#v", err)
		case !giveUp && (!errors.As(err, &pending) || !strings.Contains(err.Error(), "a disk is missing")):
			t.Errorf("not giving up returned %#v", err)
		}
	}
}

// What another process has made may have been used, whatever its status says: etcd may have been
// restored to a moment before it was ready.
func TestEnsureGivesUpOnlyWhatItMade(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	agent := c.NewAgent(t, node, 10*gib)
	agent.Answer(func(*berth.LocalVolume) (string, string) { return berth.ReasonPoolNotReady, "a disk is missing" })
	req := request("pvc-1", gib)
	if _, err := c.Volumes.Ensure(within(t, 2*time.Second), req); err == nil {
		t.Fatal("a volume without its pool")
	}
	tracker := provision.NewTracker()
	c.Feed(t, tracker)
	req.GiveUp = true
	_, err := provision.NewVolumes(c.Client, c.Client, tracker).Ensure(within(t, 2*time.Second), req)
	if _, ok := errors.AsType[*provision.Pending](err); !ok || !strings.Contains(err.Error(), "a disk is missing") {
		t.Errorf("got %#v", err)
	}
	lv := &berth.LocalVolume{}
	if err := c.Backdoor.Get(t.Context(), types.NamespacedName{Name: "pvc-1"}, lv); err != nil || lv.DeletionTimestamp != nil {
		t.Errorf("it was taken back: %v", err)
	}
	if _, err := c.Volumes.Ensure(within(t, 2*time.Second), req); !errors.Is(err, volume.ErrPoolUnavailable) {
		t.Errorf("by who made it: %#v", err)
	}
}

func TestEnsureInBackgroundThenDone(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	agent := c.NewAgent(t, node, 10*gib)
	agent.Pause()
	_, err := c.Volumes.Ensure(within(t, 200*time.Millisecond), request("pvc-1", gib))
	var pending *provision.Pending
	if !errors.As(err, &pending) || !strings.Contains(err.Error(), "agent of node node1 has not answered") {
		t.Fatalf("got %#v", err)
	}
	agent.Resume()
	if _, err := c.Volumes.Ensure(within(t, 10*time.Second), request("pvc-1", gib)); err != nil {
		t.Fatal(err)
	}
	if agent.Made() != 1 {
		t.Errorf("made %d volumes", agent.Made())
	}
}

// A node that does not answer holds the first wait for all its time and the later
// ones hardly.
func TestSilentNodeHoldsNobodyTwice(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	agent := c.NewAgent(t, node, 100*gib)
	agent.Pause()
	if _, err := c.Volumes.Ensure(within(t, 100*time.Millisecond), request("pvc-1", gib)); err == nil {
		t.Fatal("no agent, and a volume")
	}
	began := time.Now()
	if _, err := c.Volumes.Ensure(within(t, time.Minute), request("pvc-2", gib)); err == nil {
		t.Fatal("no agent, and a volume")
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the second wait took %s", took)
	}
	agent.Resume()
	for _, name := range []string{"pvc-1", "pvc-2"} {
		if _, err := c.Volumes.Ensure(within(t, 10*time.Second), request(name, gib)); err != nil {
			t.Error(err)
		}
	}
}

func TestNodeGoneReleasesWhatWasNeverReady(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t) // no Node object
	_, err := c.Volumes.Ensure(within(t, 4*time.Second), request("pvc-1", gib))
	var failure *provision.Failure
	if !errors.As(err, &failure) || failure.Reason != provision.ReasonNodeGone {
		t.Fatalf("got %#v", err)
	}
	if err := c.Backdoor.Get(t.Context(), types.NamespacedName{Name: "pvc-1"}, &berth.LocalVolume{}); !apierrors.IsNotFound(err) {
		t.Errorf("the LocalVolume is left: %v", err)
	}
}

func TestDeleteKeepsVolumesOfANodeThatIsGone(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	agent := c.NewAgent(t, node, 10*gib)
	if _, err := c.Volumes.Ensure(within(t, 10*time.Second), request("pvc-1", gib)); err != nil {
		t.Fatal(err)
	}
	agent.Pause()
	if err := c.Backdoor.Delete(t.Context(), nodeObject(node)); err != nil {
		t.Fatal(err)
	}
	err := c.Volumes.Delete(within(t, 200*time.Millisecond), "pvc-1")
	if err == nil || !strings.Contains(err.Error(), "remove the finalizer "+berth.AgentFinalizer) {
		t.Errorf("got %v", err)
	}
	lv := &berth.LocalVolume{}
	if err := c.Backdoor.Get(t.Context(), types.NamespacedName{Name: "pvc-1"}, lv); err != nil || len(lv.Finalizers) != 1 {
		t.Errorf("the LocalVolume went without its agent: %v, %v", lv.Finalizers, err)
	}
}

func TestEnsureConflicts(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t)
	c.NewAgent(t, node, 10*gib)
	if _, err := c.Volumes.Ensure(within(t, 10*time.Second), request("pvc-1", gib)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*provision.Request){
		"claim": func(r *provision.Request) { r.Spec.ClaimRef.UID = "other" },
		"node":  func(r *provision.Request) { r.Spec.NodeName = "node2" },
		"size":  func(r *provision.Request) { r.Spec.SizeBytes++ },
		"pool":  func(r *provision.Request) { r.Spec.Pool = "slow" },
	} {
		req := request("pvc-1", gib)
		change(&req)
		if _, err := c.Volumes.Ensure(within(t, 10*time.Second), req); !errors.Is(err, volume.ErrExists) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// The object exists and the informer has not seen it: read it, do not make a
// second.
func TestEnsureAdoptsWhatIsNotSeenYet(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t)
	c.NewAgent(t, node, 10*gib)
	first, err := c.Volumes.Ensure(within(t, 10*time.Second), request("pvc-1", gib))
	if err != nil {
		t.Fatal(err)
	}
	c.Requests()
	late := provision.NewTracker()
	restarted := provision.NewVolumes(c.Client, c.Client, late)
	done := make(chan struct{})
	go func() {
		defer close(done)
		got, err := restarted.Ensure(within(t, 10*time.Second), request("pvc-1", gib))
		if err != nil || got.UID != first.UID {
			t.Errorf("got %v, %v", got, err)
		}
	}()
	eventually(t, "it reads the object", func() bool { return len(late.List()) == 0 && requestsContain(c, "GET") })
	c.Feed(t, late)
	<-done
}

func requestsContain(c *provisiontest.Cluster, verb string) bool {
	return slices.ContainsFunc(c.Requests(), func(r string) bool { return strings.HasPrefix(r, verb) })
}

// Each request is lost once, before it took effect or after; a new process with
// the same objects converges, with one volume.
func TestKilledAtEachRequestConverges(t *testing.T) {
	t.Parallel()
	lost := errors.New("connection reset by peer")
	for _, verb := range []string{"POST", "DELETE"} {
		for _, after := range []bool{false, true} {
			c := provisiontest.New(t, nodeObject(node))
			agent := c.NewAgent(t, node, 10*gib)
			once := sync.Once{}
			c.Fail(func(v string, _ runtime.Object, _ string) (error, error) {
				var b, a error
				if v == verb {
					once.Do(func() {
						if after {
							a = lost
						} else {
							b = lost
						}
					})
				}
				return b, a
			})
			restart := func() *provision.Volumes {
				tracker := provision.NewTracker()
				c.Feed(t, tracker)
				return provision.NewVolumes(c.Client, c.Client, tracker)
			}
			_, err := c.Volumes.Ensure(within(t, 10*time.Second), request("pvc-1", gib))
			if verb == "POST" {
				if _, ok := errors.AsType[*provision.Pending](err); !ok {
					t.Fatalf("%s lost (after=%v): %#v", verb, after, err)
				}
			}
			if _, err := restart().Ensure(within(t, 10*time.Second), request("pvc-1", gib)); err != nil {
				t.Fatalf("%s lost (after=%v): %v", verb, after, err)
			}
			if err := restart().Delete(within(t, 10*time.Second), "pvc-1"); verb == "DELETE" && err == nil {
				t.Errorf("a lost DELETE was taken for done")
			}
			if err := restart().Delete(within(t, 10*time.Second), "pvc-1"); err != nil {
				t.Fatal(err)
			}
			if agent.Made() != 1 || agent.Carved() != 0 {
				t.Errorf("%s lost (after=%v): made %d, holds %d", verb, after, agent.Made(), agent.Carved())
			}
		}
	}
}

func TestDeletedWhileItIsMadeIsMadeAgain(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	agent := c.NewAgent(t, node, 10*gib)
	agent.Pause()
	done := make(chan error, 1)
	go func() {
		_, err := c.Volumes.Ensure(within(t, 20*time.Second), request("pvc-1", gib))
		done <- err
	}()
	eventually(t, "it is asked for", func() bool { return c.Tracker.Get("pvc-1") != nil })
	if err := c.Backdoor.Delete(t.Context(), c.Tracker.Get("pvc-1").DeepCopy()); err != nil {
		t.Fatal(err)
	}
	agent.Resume()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if agent.Carved() != 1 {
		t.Errorf("holds %d", agent.Carved())
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	agent := c.NewAgent(t, node, 1000*gib)
	// The watch of the fake holds a hundred events for whoever does not get a processor, and panics
	// then: three for each volume in each half.
	names := make([]string, 30)
	for i := range names {
		names[i] = "pvc-" + strings.Repeat("x", i+1)
	}
	each := func(do func(name string) error) {
		var wg sync.WaitGroup
		for _, name := range names {
			wg.Go(func() {
				if err := do(name); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	each(func(name string) error {
		_, err := c.Volumes.Ensure(within(t, 30*time.Second), request(name, gib))
		return err
	})
	if agent.Carved() != len(names) {
		t.Errorf("holds %d", agent.Carved())
	}
	each(func(name string) error { return c.Volumes.Delete(within(t, 30*time.Second), name) })
	if agent.Carved() != 0 || len(c.Requests()) != 2*len(names) {
		t.Errorf("holds %d", agent.Carved())
	}
}
