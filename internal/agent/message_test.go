// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// What is said twice is the same as what the API server has stored of it.
func TestMessagesOutliveTheAPIServer(t *testing.T) {
	t.Parallel()
	for name, message := range map[string]string{
		"plain":               "the volume stands",
		"of an old locale":    "mkfs.ext4: kann nicht \xf6ffnen",
		"cut within a letter": strings.Repeat("x", longestMessage-1) + "öffnen",
		"long":                strings.Repeat("ö", longestMessage),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lv := &v1alpha1.LocalVolume{}
			setCondition(lv, v1alpha1.LocalVolumeReady, metav1.ConditionFalse, v1alpha1.ReasonFailed, message)
			data, err := json.Marshal(lv.Status)
			if err != nil {
				t.Fatal(err)
			}
			stored := v1alpha1.LocalVolumeStatus{}
			if err := json.Unmarshal(data, &stored); err != nil {
				t.Fatal(err)
			}
			got, want := stored.Conditions[0].Message, lv.Status.Conditions[0].Message
			if got != want || len(got) > longestMessage+len("…") || !strings.HasPrefix(message, got[:10]) {
				t.Errorf("stored is %q, said was %q", got, want)
			}
		})
	}
}
