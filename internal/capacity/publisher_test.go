// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package capacity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

const gib = int64(1) << 30

// cluster is a fake API server that counts writes, and the room of one node by the
// parameter "pool".
type cluster struct {
	client.Client

	mu     sync.Mutex
	writes int
	fail   error
	room   map[string]volume.Capacity
	errs   map[string]error
	owner  metav1.OwnerReference
}

func newCluster(t *testing.T, objects ...client.Object) *cluster {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := storagev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c := &cluster{
		room: map[string]volume.Capacity{}, errs: map[string]error{},
		owner: metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: "n1", UID: "node-uid"},
	}
	write := func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.fail != nil {
			return c.fail
		}
		c.writes++
		return nil
	}
	c.Client = fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(ctx context.Context, cl client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if err := write(); err != nil {
				return err
			}
			return cl.Create(ctx, o, opts...)
		},
		Patch: func(ctx context.Context, cl client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			if err := write(); err != nil {
				return err
			}
			return cl.Patch(ctx, o, p, opts...)
		},
		Delete: func(ctx context.Context, cl client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			if err := write(); err != nil {
				return err
			}
			return cl.Delete(ctx, o, opts...)
		},
	}).Build()
	return c
}

func (c *cluster) set(pool string, free, largest int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.room[pool] = volume.Capacity{FreeBytes: free, MaxVolumeBytes: largest}
}

// failRoom has the room of a pool be an error; nil ends that.
func (c *cluster) failRoom(pool string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errs[pool] = err
}

func (c *cluster) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writes
}

func (c *cluster) publisher() *Publisher {
	return New(Options{
		Client: c, Live: c, Namespace: "berth", NodeName: "n1", Log: slog.New(slog.DiscardHandler),
		Owner: func(context.Context) (metav1.OwnerReference, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.owner, nil
		},
		Room: func(_ context.Context, parameters map[string]string) (volume.Capacity, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			pool := parameters["pool"]
			if err := c.errs[pool]; err != nil {
				return volume.Capacity{}, err
			}
			if _, ok := c.room[pool]; !ok {
				return volume.Capacity{}, ErrNoPlace
			}
			return c.room[pool], nil
		},
	})
}

func (c *cluster) objects(t *testing.T) map[string]storagev1.CSIStorageCapacity {
	t.Helper()
	var list storagev1.CSIStorageCapacityList
	if err := c.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	byClass := map[string]storagev1.CSIStorageCapacity{}
	for _, o := range list.Items {
		if _, twice := byClass[o.StorageClassName]; twice {
			t.Errorf("two objects of class %s", o.StorageClassName)
		}
		byClass[o.StorageClassName] = o
	}
	return byClass
}

func class(name, provisioner, pool string) *storagev1.StorageClass {
	return &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, Parameters: map[string]string{"pool": pool},
	}
}

// run starts a publisher in the bubble and waits until it has nothing to do.
func run(t *testing.T, p *Publisher) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Start(ctx) }()
	after(settle)
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// after lets the bubble's time pass.
func after(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // it is how the bubble's clock moves on
	synctest.Wait()
}

func TestOneObjectPerClassWithRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, class("fast", v1alpha1.DriverName, "fast"), class("full", v1alpha1.DriverName, "full"),
			class("wrong", v1alpha1.DriverName, "misspelt"), class("other", "other.io", "fast"))
		c.set("fast", 100*gib, 60*gib)
		c.set("full", 0, 0)
		defer run(t, c.publisher())()

		got := c.objects(t)
		if len(got) != 1 || c.count() != 1 {
			t.Fatalf("%d objects with %d writes, want 1 with 1", len(got), c.count())
		}
		o := got["fast"]
		if o.Capacity == nil || o.Capacity.Value() != 100*gib || o.MaximumVolumeSize == nil || o.MaximumVolumeSize.Value() != 60*gib {
			t.Errorf("capacity %v, maximum %v", o.Capacity, o.MaximumVolumeSize)
		}
		if o.Namespace != "berth" || o.NodeTopology.MatchLabels[v1alpha1.TopologyKeyNode] != "n1" ||
			o.Labels[LabelDriver] != v1alpha1.DriverName || len(o.OwnerReferences) != 1 || o.OwnerReferences[0].UID != "node-uid" {
			t.Errorf("object %+v", o)
		}
	})
}

func TestIdleWritesNothingAndARestartNeither(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, class("fast", v1alpha1.DriverName, "fast"))
		c.set("fast", 100*gib, 60*gib)
		stop := run(t, c.publisher())
		after(3 * time.Hour)
		stop()
		p := c.publisher()
		defer run(t, p)()
		for range 100 {
			p.Kick()
			after(time.Second)
		}
		if c.count() != 1 {
			t.Errorf("%d writes, want the first only", c.count())
		}
	})
}

func TestABurstCostsFewWritesAndEndsExact(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, class("fast", v1alpha1.DriverName, "fast"))
		c.set("fast", 200*gib, 200*gib)
		p := c.publisher()
		defer run(t, p)()
		before := c.count()
		// 100 volumes of 1 GiB, 4 per second.
		for i := range int64(100) {
			c.set("fast", (199-i)*gib, (199-i)*gib)
			p.Kick()
			after(250 * time.Millisecond)
		}
		if n := c.count() - before; n > 14 {
			t.Errorf("%d writes in a burst of 25 s", n)
		}
		after(minorSpacing + minorDelay)
		if o := c.objects(t)["fast"]; o.Capacity.Value() != 100*gib || o.MaximumVolumeSize.Value() != 100*gib {
			t.Errorf("ended at %v, want exactly 100Gi", o.Capacity)
		}
	})
}

// A volume that comes and goes while its pod runs for a moment costs no write.
func TestASmallChangeIsWrittenWhenItHasStayed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, class("fast", v1alpha1.DriverName, "fast"))
		c.set("fast", 100*gib, 100*gib)
		p := c.publisher()
		defer run(t, p)()
		after(time.Hour)
		before := c.count()
		free := func(n int64) {
			c.set("fast", n*gib, n*gib)
			p.Kick()
		}
		free(99)
		after(minorDelay - settle)
		free(100)
		after(time.Minute)
		if n := c.count() - before; n != 0 {
			t.Errorf("%d writes for a volume that came and went", n)
		}
		free(99)
		after(minorDelay - settle)
		free(98)
		after(settle)
		if n := c.count() - before; n != 0 {
			t.Errorf("%d writes before the change had stayed", n)
		}
		after(2 * settle)
		if o := c.objects(t)["fast"]; c.count()-before != 1 || o.Capacity.Value() != 98*gib {
			t.Errorf("%d writes, published is %v", c.count()-before, o.Capacity)
		}
	})
}

func TestWhatDecidesIsPublishedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, class("fast", v1alpha1.DriverName, "fast"))
		c.set("fast", 100*gib, 100*gib)
		p := c.publisher()
		defer run(t, p)()
		after(time.Minute)

		c.set("fast", 50*gib, 50*gib)
		p.Kick()
		after(2 * settle)
		if o := c.objects(t)["fast"]; o.Capacity.Value() != 50*gib {
			t.Errorf("halved room is still %v", o.Capacity)
		}
		c.set("fast", 0, 0)
		p.Kick()
		after(2 * settle)
		if n := len(c.objects(t)); n != 0 {
			t.Errorf("%d objects of a full node", n)
		}
		c.set("fast", 5*gib, 5*gib)
		p.Kick()
		after(2 * settle)
		if o := c.objects(t)["fast"]; o.Capacity == nil || o.Capacity.Value() != 5*gib {
			t.Errorf("room that came back is not published")
		}
	})
}

func TestClassGoneTakesItsObject(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sc := class("fast", v1alpha1.DriverName, "fast")
		c := newCluster(t, sc)
		c.set("fast", 100*gib, 100*gib)
		p := c.publisher()
		stop := run(t, p)
		stop() // it happens while no agent runs
		if err := c.Client.Delete(t.Context(), sc); err != nil {
			t.Fatal(err)
		}
		defer run(t, c.publisher())()
		if n := len(c.objects(t)); n != 0 {
			t.Errorf("%d objects of no class", n)
		}
	})
}

func TestRoomThatIsNotKnownChangesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, class("fast", v1alpha1.DriverName, "fast"), class("slow", v1alpha1.DriverName, "slow"))
		c.set("fast", 100*gib, 100*gib)
		c.set("slow", 100*gib, 100*gib)
		p := c.publisher()
		defer run(t, p)()
		c.failRoom("fast", errors.New("lvs hangs"))
		c.set("slow", 10*gib, 10*gib)
		p.Kick()
		after(10 * time.Second)
		got := c.objects(t)
		if o := got["fast"]; o.Capacity == nil || o.Capacity.Value() != 100*gib {
			t.Errorf("unknown room was published as %v", o.Capacity)
		}
		if o := got["slow"]; o.Capacity.Value() != 10*gib {
			t.Errorf("one class held up the other: %v", o.Capacity)
		}
		c.failRoom("fast", nil)
		c.set("fast", 20*gib, 20*gib)
		after(2 * lastRetry)
		if o := c.objects(t)["fast"]; o.Capacity.Value() != 20*gib {
			t.Errorf("not published after it was known again: %v", o.Capacity)
		}
	})
}

// While a disk joins a group nobody can say what is in it, and nothing else tells when that is over.
func TestAPoolThatIsUnavailableIsLookedAtAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, class("fast", v1alpha1.DriverName, "fast"))
		c.set("fast", 100*gib, 100*gib)
		p := c.publisher()
		defer run(t, p)()
		c.failRoom("fast", fmt.Errorf("%w: a disk is missing: %w", ErrNoPlace, volume.ErrPoolUnavailable))
		p.Kick()
		after(2 * settle)
		if got := c.objects(t); len(got) != 0 {
			t.Errorf("published for a pool that cannot be used: %v", got)
		}
		c.failRoom("fast", nil)
		after(2 * unavailableRetry)
		if got := c.objects(t); len(got) != 1 {
			t.Error("not published after it could be used again")
		}
	})
}

func TestFailedWritesAreTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, class("fast", v1alpha1.DriverName, "fast"))
		c.set("fast", 100*gib, 100*gib)
		c.fail = errors.New("API server away")
		defer run(t, c.publisher())()
		after(5 * time.Minute)
		c.mu.Lock()
		c.fail = nil
		c.mu.Unlock()
		after(2 * lastRetry)
		if n := len(c.objects(t)); n != 1 {
			t.Errorf("%d objects after the API server is back", n)
		}
	})
}

func TestNodeMadeAnewAndObjectRemovedByOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, class("fast", v1alpha1.DriverName, "fast"))
		c.set("fast", 100*gib, 100*gib)
		p := c.publisher()
		defer run(t, p)()
		o := c.objects(t)["fast"]
		if err := c.Client.Delete(t.Context(), &o); err != nil { // the garbage collector
			t.Fatal(err)
		}
		c.mu.Lock()
		c.owner.UID = "another"
		c.mu.Unlock()
		p.Kick()
		after(time.Second)
		if o := c.objects(t)["fast"]; len(o.OwnerReferences) != 1 || o.OwnerReferences[0].UID != "another" {
			t.Errorf("owner %+v", o.OwnerReferences)
		}
	})
}

// Without its object a node gets no pods, so that its room does not change either: the object must
// come back by itself, and one that was changed be set right.
func TestWhatOthersHaveChangedIsSetRight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, class("fast", v1alpha1.DriverName, "fast"), class("slow", v1alpha1.DriverName, "slow"))
		c.set("fast", 100*gib, 100*gib)
		c.set("slow", 50*gib, 50*gib)
		defer run(t, c.publisher())()
		fast, slow := c.objects(t)["fast"], c.objects(t)["slow"]
		if err := c.Client.Delete(t.Context(), &fast); err != nil {
			t.Fatal(err)
		}
		slow.MaximumVolumeSize = resource.NewQuantity(1, resource.BinarySI)
		if err := c.Client.Update(t.Context(), &slow); err != nil {
			t.Fatal(err)
		}
		after(2 * relist)
		if o := c.objects(t)["fast"]; o.Capacity == nil || o.Capacity.Value() != 100*gib {
			t.Errorf("what was removed: %v", o.Capacity)
		}
		if o := c.objects(t)["slow"]; o.MaximumVolumeSize.Value() != 50*gib {
			t.Errorf("what was changed: %v", o.MaximumVolumeSize)
		}
		written := c.count()
		after(10 * relist)
		if c.count() != written {
			t.Errorf("%d writes of a node at rest", c.count()-written)
		}
	})
}

func TestTiming(t *testing.T) {
	t.Parallel()
	last := time.Unix(1000, 0)
	for name, tc := range map[string]struct {
		was, now Room
		want     time.Duration
	}{
		"nothing to room":      {Room{}, Room{gib, gib}, -1},
		"room to nothing":      {Room{gib, gib}, Room{}, -1},
		"five percent less":    {Room{100 * gib, 100 * gib}, Room{95 * gib, 95 * gib}, materialSpacing},
		"five percent more":    {Room{100 * gib, 100 * gib}, Room{105 * gib, 105 * gib}, materialSpacing},
		"one percent":          {Room{100 * gib, 100 * gib}, Room{99 * gib, 99 * gib}, minorSpacing},
		"largest alone":        {Room{100 * gib, 50 * gib}, Room{100 * gib, 20 * gib}, materialSpacing},
		"little of scarce":     {Room{10 * gib, 10 * gib}, Room{10*gib - 1, 10*gib - 1}, materialSpacing},
		"little more, scarce":  {Room{9 * gib, 9 * gib}, Room{9*gib + 1, 9*gib + 1}, minorSpacing},
		"five percent of tiny": {Room{10, 10}, Room{11, 11}, materialSpacing},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := due(tc.was, tc.now, last, last)
			if tc.want < 0 && got.IsZero() {
				return
			}
			if tc.want < 0 || got != last.Add(tc.want) {
				t.Errorf("due %v after the last write, want %v", got.Sub(last), tc.want)
			}
		})
	}
}
