// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Events returns the messages of the events on one object, oldest first, each
// behind its type and reason, as "Warning ProvisioningFailed: …".
func (s *Space) Events(ctx context.Context, uid types.UID) ([]string, error) {
	events := &corev1.EventList{}
	if err := s.Client.List(ctx, events, &client.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("involvedObject.uid", string(uid)),
	}); err != nil {
		return nil, fmt.Errorf("list events of %s: %w", uid, err)
	}
	var lines []string
	for _, event := range events.Items {
		lines = append(lines, strings.TrimSpace(event.Type+" "+event.Reason+": "+event.Message))
	}
	return lines, nil
}
