// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// mostLogLines and mostLogBytes of each container are kept, the latest.
	mostLogLines = 5000
	mostLogBytes = 2 << 20
	// mostLogPods have their logs collected: those that are not ready first.
	mostLogPods = 100
)

func convert(o *object, to any) error {
	return runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, to)
}

// systemPods are Berth's, by name.
func (b *bundle) systemPods(ctx context.Context) ([]corev1.Pod, error) {
	list := &corev1.PodList{}
	if err := b.client.List(ctx, list, client.InNamespace(b.o.SystemNamespace)); err != nil {
		return nil, err
	}
	pods := slices.DeleteFunc(list.Items, func(pod corev1.Pod) bool {
		return !slices.Contains([]string{agentName, provisionerName}, pod.Labels[nameLabel])
	})
	slices.SortFunc(pods, func(x, y corev1.Pod) int { return cmp.Compare(x.Name, y.Name) })
	return pods, nil
}

// addLogs adds the logs of Berth's containers, and of those that ran before them.
func (b *bundle) addLogs(ctx context.Context) error {
	pods, err := b.systemPods(ctx)
	if err != nil {
		b.fail("logs", err)
		return nil
	}
	if b.cluster.Logs == nil {
		b.fail("logs", errors.New("this connection reads none"))
		return nil
	}
	rank := func(pod *corev1.Pod) int {
		ready, _ := podReady(pod)
		switch {
		case pod.Labels[nameLabel] == provisionerName:
			return 0
		case !ready:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(pods, func(x, y corev1.Pod) int { return cmp.Compare(rank(&x), rank(&y)) })
	if left := len(pods) - mostLogPods; left > 0 {
		pods = pods[:mostLogPods]
		b.fail("logs", fmt.Errorf("those of %d more agents, which are ready, were left out", left))
	}
	for i := range pods {
		if err := b.addLogsOf(ctx, &pods[i]); err != nil {
			return err
		}
	}
	return nil
}

func (b *bundle) addLogsOf(ctx context.Context, pod *corev1.Pod) error {
	restarts := map[string]int32{}
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		restarts[status.Name] = status.RestartCount
	}
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, previous := range []bool{false, true} {
			if previous && restarts[container.Name] == 0 {
				continue
			}
			name := fmt.Sprintf("logs/%s/%s.log", pod.Name, container.Name)
			if previous {
				name = strings.TrimSuffix(name, ".log") + ".previous.log"
			}
			content, err := b.logOf(ctx, client.ObjectKeyFromObject(pod), container.Name, previous)
			if previous && (apierrors.IsNotFound(err) || apierrors.IsBadRequest(err)) {
				continue // the node has thrown it away
			}
			if err != nil {
				b.fail(name, err)
				continue
			}
			if err := b.add(name, []byte(redactText(string(content)))); err != nil {
				return err
			}
		}
	}
	return nil
}

// logOf returns the end of a container's log. The limit that the API server knows is one from
// the beginning, so that the latest lines would be missing: the end is cut out here.
func (b *bundle) logOf(ctx context.Context, pod client.ObjectKey, container string, previous bool) ([]byte, error) {
	lines := int64(mostLogLines)
	stream, err := b.cluster.Logs(ctx, pod, &corev1.PodLogOptions{Container: container, Previous: previous, TailLines: &lines, Timestamps: true})
	if err != nil {
		return nil, err
	}
	end := &tail{most: mostLogBytes}
	_, err = io.Copy(end, stream)
	return end.content(), errors.Join(err, stream.Close())
}

// tail keeps the end of what is written to it.
type tail struct {
	most int
	kept []byte
	cut  bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if len(t.kept) > 2*t.most { //nolint:mnd // so that each byte is moved once only
		t.trim()
	}
	return len(p), nil
}

func (t *tail) trim() {
	if over := len(t.kept) - t.most; over > 0 {
		t.kept, t.cut = slices.Clone(t.kept[over:]), true
	}
}

// content is what was kept, from the beginning of a line: half a line might be the half of a
// secret that says by nothing what it is.
func (t *tail) content() []byte {
	t.trim()
	if !t.cut {
		return t.kept
	}
	_, rest, _ := strings.Cut(string(t.kept), "\n")
	return []byte(rest)
}
