// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/berth-dev/berth/tests/workload"
)

// Creations and deletions go on while agents are killed and power is lost at
// random moments. Afterwards nothing is leaked and nothing is there twice.
var _ = Describe("Creations and deletions", Label("chaos"), Serial, func() {
	// churn makes and deletes n volumes of alternating modes on the node, a few at a
	// time, while harm is done again and again.
	churn := func(ctx context.Context, n int, node string, harm func(ctx context.Context) error) (harms int64) {
		GinkgoHelper()
		space := newSpace(ctx)
		var done atomic.Int64
		var count atomic.Int64
		stop := make(chan struct{})
		var harming sync.WaitGroup
		harming.Add(1)
		go func() {
			defer GinkgoRecover()
			defer harming.Done()
			for {
				pause := time.Duration(rand.IntN(25000)) * time.Millisecond
				select {
				case <-stop:
					return
				case <-ctx.Done():
					return
				case <-time.After(pause):
				}
				if err := harm(ctx); err != nil {
					if ctx.Err() == nil {
						Fail(fmt.Sprintf("do harm: %v", err))
					}
					return
				}
				count.Add(1)
			}
		}()
		const workers = 15
		wanted := make(chan int)
		var working sync.WaitGroup
		for range workers {
			working.Add(1)
			go func() {
				defer GinkgoRecover()
				defer working.Done()
				for i := range wanted {
					if err := liveOnce(ctx, space, i, node); err != nil {
						Fail(err.Error())
					}
					done.Add(1)
				}
			}()
		}
		for i := range n {
			select {
			case wanted <- i:
			case <-ctx.Done():
			}
		}
		close(wanted)
		working.Wait()
		close(stop)
		harming.Wait()
		Expect(done.Load()).To(BeEquivalentTo(n))
		return count.Load()
	}

	It("converge although agents are killed at random moments", func(ctx SpecContext) {
		needs(CanExec)
		node := suite.nodes[0]
		kills := churn(ctx, options.creations, node, func(ctx context.Context) error {
			if err := restartAgent(ctx, node); err != nil {
				return err
			}
			// Two of three may get to work before they are killed, the third is killed
			// while it starts.
			if rand.IntN(3) == 0 {
				return nil
			}
			return untilReady(ctx, node)
		})
		awaitAgent(ctx, node)
		expectNothingLeft(ctx)
		Expect(kills).To(BeNumerically(">", 0))
		AddReportEntry("agents killed", fmt.Sprintf("%d kills during %d creations and deletions", kills, options.creations), ReportEntryVisibilityAlways)
	}, SpecTimeout(40*time.Minute))

	It("converge although a node loses its power in the middle", func(ctx SpecContext) {
		needs(CanPowerOff)
		node := suite.nodes[len(suite.nodes)-1]
		for range options.powerLosses {
			space := newSpace(ctx)
			var working sync.WaitGroup
			working.Add(1)
			lived := make(chan error, 1)
			go func() {
				defer working.Done()
				lived <- liveOnce(ctx, space, rand.IntN(10), node)
			}()
			time.Sleep(time.Duration(rand.IntN(6000)) * time.Millisecond) //nolint:forbidigo // the random moment is what is tested
			Expect(suite.hosts.PowerOff(ctx, node)).To(Succeed())
			Expect(suite.hosts.PowerOn(ctx, node, false)).To(Succeed())
			awaitNode(ctx, node, true)
			awaitAgent(ctx, node)
			working.Wait()
			Expect(<-lived).To(Succeed())
		}
		expectNothingLeft(ctx)
	}, SpecTimeout(time.Duration(options.powerLosses+1)*8*time.Minute))
})

// pinned is the annotation by which the scheduler tells a provisioner the node. With
// it a claim is bound without a pod: most of a life under harm is then about volumes
// and not about how fast an emulated node starts containers.
const pinned = "volume.kubernetes.io/selected-node"

// chaosKinds are the kinds that are cheap enough to make again and again.
func chaosKinds() []kind {
	var cheap []kind
	for _, kind := range []kind{kinds[0], kinds[5], kinds[2]} {
		if kind.class(suite.description.Classes) != "" {
			cheap = append(cheap, kind)
		}
	}
	return cheap
}

// liveOnce takes one volume through its life: claimed, bound, deleted. Each tenth has a
// pod, and is a whole disk where there are some: a node has few of them.
func liveOnce(ctx context.Context, space *workload.Space, i int, node string) error {
	name := fmt.Sprintf("life-%d", i)
	cheap := chaosKinds()
	kind, withPod := cheap[i%len(cheap)], i%10 == 9
	if device := kinds[3]; withPod && device.class(suite.description.Classes) != "" {
		kind = device
	}
	claim := kind.claim(name)
	if !withPod {
		claim.Annotations = map[string]string{pinned: node}
	}
	if _, err := space.CreateClaim(ctx, claim); err != nil {
		return err
	}
	if withPod {
		if _, err := space.CreatePod(ctx, kind.with(workload.Pod{Name: name, Node: node}, name)); err != nil {
			return err
		}
	}
	volume, err := space.AwaitBound(ctx, name)
	if err != nil {
		return fmt.Errorf("bind %s (%s): %w", name, kind.name, err)
	}
	if withPod {
		if err := space.DeletePod(ctx, name); err != nil {
			return err
		}
	}
	if err := space.DeleteClaim(ctx, name); err != nil {
		return err
	}
	if err := space.AwaitVolumeGone(ctx, volume.Name); err != nil {
		return fmt.Errorf("delete %s (%s): %w", name, kind.name, err)
	}
	return nil
}
