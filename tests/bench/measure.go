// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/tests/samples"
	"github.com/berth-dev/berth/tests/workload"
)

// row is what was measured of one class.
type row struct {
	class           string
	bound           samples.Of // seconds, one at a time
	scheduled       samples.Of // seconds, until the scheduler has let the pod go to its node
	running         samples.Of // seconds, with a new volume
	bare            samples.Of // seconds, a pod without a volume, in turn with the others
	requestsCreate  float64    // per claim, claim and pod together less a bare pod's
	requestsDelete  float64
	burst           int
	boundPerSecond  float64
	deletePerSecond float64
	burstCreate     float64 // requests per claim in the burst, no pods involved
	burstDelete     float64
	startedCreate   map[string]int // programs that the node started during the burst
	startedDelete   map[string]int
}

// measure measures one class after the other. What is known goes to progress at once,
// the tables to out in the end; those of the classes that were done also when a later
// one fails.
func measure(ctx context.Context, p plan, out, progress io.Writer) (err error) {
	config, err := clientcmd.BuildConfigFromFlags("", p.kubeconfig)
	if err != nil {
		return fmt.Errorf("read %s: %w", p.kubeconfig, err)
	}
	config.QPS, config.Burst = -1, 0
	counter := &ownRequests{}
	config.Wrap(counter.wrap)
	scheme := runtime.NewScheme()
	if err := workload.AddToScheme(scheme); err != nil {
		return err
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	requests, err := newRequestMeter(config, counter)
	if err != nil {
		return err
	}
	host := openNode(p.node)
	var rows []row
	defer func() {
		if err != nil && len(rows) > 0 {
			printRows(out, p, rows)
		}
	}()
	for i, class := range p.classes {
		name, size, found := strings.Cut(class, "=")
		if !found {
			size = p.size
		}
		fmt.Fprintf(progress, "[%d/%d] %s\n", i+1, len(p.classes), name)
		began := time.Now()
		space := &workload.Space{Client: c, Namespace: fmt.Sprintf("bench-%d", i), Image: p.image}
		r, err := measureClass(ctx, p, space, requests, host, name, size)
		if err != nil {
			return fmt.Errorf("measure %s: %w", name, err)
		}
		rows = append(rows, r)
		fmt.Fprintf(progress, "      %s\n      took %s\n", r.summary(), time.Since(began).Round(time.Second))
	}
	printRows(out, p, rows)
	rows = nil
	if host == nil {
		return nil
	}
	resident, err := host.residentKiB(ctx, p.processes)
	if err != nil {
		return err
	}
	printResident(out, p, resident)
	return nil
}

func measureClass(ctx context.Context, p plan, space *workload.Space, requests *requestMeter, host *node, class, size string) (row, error) {
	r := row{class: class}
	if err := space.Ensure(ctx); err != nil {
		return r, err
	}
	defer func() { _ = space.Remove(context.WithoutCancel(ctx)) }()
	if err := oneAtATime(ctx, p, space, requests, size, &r); err != nil {
		return r, err
	}
	if p.burst > 0 {
		if err := burst(ctx, p, space, requests, host, size, &r); err != nil {
			return r, err
		}
	}
	return r, nil
}

// oneAtATime makes a claim with its pod, takes both away, and makes a pod without
// a volume in turn, so that both see the same machine.
func oneAtATime(ctx context.Context, p plan, space *workload.Space, requests *requestMeter, size string, r *row) error {
	var create, remove, bare float64
	for i := range p.single {
		name := fmt.Sprintf("one-%d", i)
		before, err := requests.read(ctx)
		if err != nil {
			return err
		}
		if err := startOne(ctx, p, space, name, size, r); err != nil {
			return err
		}
		volume, err := space.AwaitBound(ctx, name)
		if err != nil {
			return err
		}
		middle, err := requests.read(ctx)
		if err != nil {
			return err
		}
		if err := space.DeletePod(ctx, name); err != nil {
			return err
		}
		podGone, err := requests.read(ctx)
		if err != nil {
			return err
		}
		if err := space.DeleteClaim(ctx, name); err != nil {
			return err
		}
		if err := space.AwaitVolumeGone(ctx, volume.Name); err != nil {
			return err
		}
		after, err := requests.read(ctx)
		if err != nil {
			return err
		}
		create += middle.since(before)
		remove += after.since(podGone)

		bareBefore, err := requests.read(ctx)
		if err != nil {
			return err
		}
		start := time.Now()
		if _, err := space.CreatePod(ctx, workload.Pod{Name: name, Node: p.node}); err != nil {
			return err
		}
		if _, err := space.AwaitPod(ctx, name, corev1.PodRunning); err != nil {
			return err
		}
		r.bare = append(r.bare, time.Since(start).Seconds())
		bareAfter, err := requests.read(ctx)
		if err != nil {
			return err
		}
		bare += bareAfter.since(bareBefore)
		if err := space.DeletePod(ctx, name); err != nil {
			return err
		}
	}
	n := float64(p.single)
	r.requestsCreate, r.requestsDelete = (create-bare)/n, remove/n
	return nil
}

// startOne makes a claim with its pod and takes the times of what follows.
func startOne(ctx context.Context, p plan, space *workload.Space, name, size string, r *row) error {
	start := time.Now()
	if _, err := space.CreateClaim(ctx, workload.Claim{Name: name, Class: r.class, Size: size}); err != nil {
		return err
	}
	if _, err := space.CreatePod(ctx, workload.Pod{Name: name, Node: p.node, Claims: []string{name}}); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx) // one that cannot come any more ends the others
	steps := []struct {
		times *samples.Of
		await func() error
	}{
		{&r.bound, func() error { _, err := space.AwaitBound(ctx, name); return err }},
		{&r.scheduled, func() error { _, err := space.AwaitPodScheduled(ctx, name); return err }},
		{&r.running, func() error { _, err := space.AwaitPod(ctx, name, corev1.PodRunning); return err }},
	}
	for _, step := range steps {
		group.Go(func() error {
			if err := step.await(); err != nil {
				return err
			}
			*step.times = append(*step.times, time.Since(start).Seconds())
			return nil
		})
	}
	return group.Wait()
}

// burst makes many claims at once. They are pinned to the node by what the
// scheduler would write, so that no pod is in the way.
func burst(ctx context.Context, p plan, space *workload.Space, requests *requestMeter, host *node, size string, r *row) error {
	r.burst = p.burst
	if host != nil {
		if err := host.startCounting(ctx); err != nil {
			return err
		}
	}
	before, err := requests.read(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	errs := make(chan error, p.burst)
	for i := range p.burst {
		go func() {
			name := fmt.Sprintf("burst-%d", i)
			_, err := space.CreateClaim(ctx, workload.Claim{
				Name: name, Class: r.class, Size: size,
				Annotations: map[string]string{"volume.kubernetes.io/selected-node": p.node},
			})
			errs <- err
		}()
	}
	for range p.burst {
		if err := <-errs; err != nil {
			return err
		}
	}
	volumes, err := awaitAllBound(ctx, space, p.burst)
	if err != nil {
		return err
	}
	r.boundPerSecond = float64(p.burst) / time.Since(start).Seconds()
	if host != nil {
		if r.startedCreate, err = host.stopCounting(ctx); err != nil {
			return err
		}
		if err := host.startCounting(ctx); err != nil {
			return err
		}
	}
	middle, err := requests.read(ctx)
	if err != nil {
		return err
	}
	start = time.Now()
	for i := range p.burst {
		claim := workload.Claim{Name: fmt.Sprintf("burst-%d", i), Size: size}.Object(space.Namespace)
		if err := space.Client.Delete(ctx, claim); err != nil {
			return fmt.Errorf("delete claim %s: %w", claim.Name, err)
		}
	}
	if err := awaitAllGone(ctx, space, volumes); err != nil {
		return err
	}
	r.deletePerSecond = float64(p.burst) / time.Since(start).Seconds()
	after, err := requests.read(ctx)
	if err != nil {
		return err
	}
	if host != nil {
		if r.startedDelete, err = host.stopCounting(ctx); err != nil {
			return err
		}
	}
	n := float64(p.burst)
	r.burstCreate, r.burstDelete = middle.since(before)/n, after.since(middle)/n
	return nil
}
