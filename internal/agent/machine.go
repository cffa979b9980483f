// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"

	"github.com/berth-dev/berth/pkg/volume"
)

// madeElsewhere says that something was made on another host than this one, by
// /etc/machine-id: a node that was installed anew, or new hardware under an old name. It is
// never touched from here, so the way out is a person's.
func madeElsewhere(what, made, here string) error {
	return fmt.Errorf("%s was made on the machine %s and this is %s; if that machine will not come back, forget what was on it: kubectl berth forget-node NODE --machine=%s: %w",
		what, made, here, made, volume.ErrIdentity)
}
