// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// A removal that has begun, and has released nothing yet, heeds what a person says of the disk, also
// when its BlockDevice was made anew and asks for nothing.
func TestPurgeOfADiskThatIsKeptMeanwhile(t *testing.T) {
	t.Parallel()
	for _, anew := range []bool{false, true} {
		h := newDiskHost(t)
		h.leave(true, nil)
		req := h.request()
		req.Confirm = h.wantDisk(req, v1alpha1.PurgeQuarantined, "").Token
		h.begin(req)
		look := func() []v1alpha1.PurgeStatus {
			if anew {
				h.disks.bd.Status.Purges = nil
				return h.ask()
			}
			return h.ask(req)
		}
		wantKept := func(says string) {
			t.Helper()
			if got := look(); len(got) != 1 || got[0].State != v1alpha1.PurgePurging || !strings.Contains(got[0].Message, says) {
				t.Fatalf("anew %v: it is %+v, want %q", anew, got, says)
			}
			h.wantClaimed()
		}
		h.disks.bd.Spec.Reserved = "for the backup team"
		wantKept("reserved: for the backup team")
		h.disks.bd.Spec.Reserved, h.pooled = "", "fast"
		wantKept("part of pool fast")
		h.pooled = ""
		local := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "local"}}
		local.Spec.Local = &corev1.LocalVolumeSource{Path: "/dev/disk/by-id/virtio-disk-0"}
		h.create(local)
		wantKept("PersistentVolume local")
		h.remove(local)
		if look(); h.released() == nil {
			t.Fatalf("anew %v: what had begun did not go on", anew)
		}
	}
}
