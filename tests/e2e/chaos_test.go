// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/tests/workload"
)

// Creations and deletions go on while agents are killed and power is lost at
// random moments. Afterwards nothing is leaked and nothing is there twice.
//
// Both harms happen at once, each to a node of its own: they share the control plane,
// and the provisioner that leads runs on one of the two. Most of the time of each is
// waiting for kubelet or for a machine to boot, which the other can use.
var _ = Describe("Creations and deletions", Label("chaos", "long"), Serial, func() {
	It("converge although agents are killed and power is lost at random moments", func(ctx SpecContext) {
		needs(CanExec)
		killed, darkened := suite.nodes[0], suite.nodes[len(suite.nodes)-1]
		space := newSpace(ctx)
		harms, harming := errgroup.WithContext(ctx)
		if killed == darkened {
			harms.SetLimit(1)
		}
		harms.Go(func() error { return liveUnderKills(harming, space, killed) })
		if suite.description.Has(CanPowerOff) {
			space := newSpace(ctx)
			harms.Go(func() error { return liveUnderPowerLosses(harming, space, darkened) })
		} else {
			AddReportEntry("power losses", "none: the power of this cluster's nodes cannot be cut", ReportEntryVisibilityAlways)
		}
		Expect(harms.Wait()).To(Succeed())
		for _, node := range suite.nodes {
			awaitAgent(ctx, node)
		}
		expectNothingLeft(ctx)
	}, SpecTimeout(5*time.Minute+max(time.Duration(options.creations)*20*time.Second, time.Duration(options.powerLosses)*4*time.Minute)))
})

// liveUnderKills takes volumes of alternating modes through their lives on a node, a
// few at a time, while the node's agent is killed again and again.
func liveUnderKills(ctx context.Context, space *workload.Space, node string) error {
	const atOnce, longestPause = 15, 25 * time.Second
	began := time.Now()
	lived := make(chan struct{})
	kills := 0
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() error {
		defer close(lived)
		return live(ctx, space, node, atOnce, options.creations)
	})
	both.Go(func() error {
		for {
			select {
			case <-lived:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(rand.N(longestPause)):
			}
			if err := restartAgent(ctx, node); err != nil {
				return err
			}
			kills++
			// Two of three may get to work before they are killed, the third is killed
			// while it starts.
			if rand.IntN(3) == 0 {
				continue
			}
			if err := untilReady(ctx, node); err != nil {
				return err
			}
		}
	})
	if err := both.Wait(); err != nil {
		return fmt.Errorf("after %d kills of the agent on %s: %w", kills, node, err)
	}
	if kills == 0 {
		return fmt.Errorf("the agent on %s was never killed", node)
	}
	AddReportEntry("agents killed", fmt.Sprintf("%d kills on %s during %d creations and deletions, in %s",
		kills, node, options.creations, time.Since(began).Round(time.Second)), ReportEntryVisibilityAlways)
	return nil
}

// liveUnderPowerLosses takes volumes through their lives on a node that loses its
// power in the middle of them.
func liveUnderPowerLosses(ctx context.Context, space *workload.Space, node string) error {
	const atOnce, latest = 3, 6 * time.Second
	began := time.Now()
	for loss := range options.powerLosses {
		both, ctx := errgroup.WithContext(ctx)
		both.Go(func() error { return live(ctx, space, node, atOnce, atOnce) })
		both.Go(func() error {
			time.Sleep(rand.N(latest)) //nolint:forbidigo // the random moment is what is tested
			if err := suite.hosts.PowerOff(ctx, node); err != nil {
				return err
			}
			if err := suite.hosts.PowerOn(ctx, node, false); err != nil {
				return err
			}
			return untilReady(ctx, node)
		})
		if err := both.Wait(); err != nil {
			return fmt.Errorf("at power loss %d of %s: %w", loss+1, node, err)
		}
	}
	AddReportEntry("power losses", fmt.Sprintf("%d power losses of %s during %d creations and deletions, in %s",
		options.powerLosses, node, options.powerLosses*atOnce, time.Since(began).Round(time.Second)), ReportEntryVisibilityAlways)
	return nil
}

// live takes n volumes through their lives, atOnce of them at a time, and returns when
// the last is gone or one has failed. Which kind is the first is left to chance.
func live(ctx context.Context, space *workload.Space, node string, atOnce, n int) error {
	lives, ctx := errgroup.WithContext(ctx)
	lives.SetLimit(atOnce)
	first := rand.IntN(10)
	for i := range n {
		lives.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, 2*patience)
			defer cancel()
			return liveOnce(ctx, space, first+i, node)
		})
	}
	return lives.Wait()
}

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
	volume, err := awaitBoundTo(ctx, space, name, node, withPod)
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

// awaitBoundTo waits until a claim is bound. Where no pod wants it, nobody but the spec
// plays the scheduler: a claim that a node gave back is sent there again.
func awaitBoundTo(ctx context.Context, space *workload.Space, name, node string, withPod bool) (*corev1.PersistentVolume, error) {
	if !withPod {
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: space.Namespace}}
		err := space.Await(ctx, claim, func(object client.Object, gone bool) (bool, error) {
			if gone {
				return false, fmt.Errorf("claim %s is gone", name)
			}
			if object.(*corev1.PersistentVolumeClaim).Status.Phase == corev1.ClaimBound {
				return true, nil
			}
			if object.GetAnnotations()[pinned] != "" {
				return false, nil
			}
			patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, pinned, node)
			again := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: space.Namespace}}
			return false, space.Client.Patch(ctx, again, client.RawPatch(types.MergePatchType, patch))
		})
		if err != nil {
			return nil, err
		}
	}
	return space.AwaitBound(ctx, name)
}
