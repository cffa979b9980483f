// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// The parameters of a VolumeAttributesClass.
const (
	// ParameterReadIOPS and ParameterWriteIOPS are operations in a second.
	ParameterReadIOPS  = "readIOPS"
	ParameterWriteIOPS = "writeIOPS"
	// ParameterReadBandwidth and ParameterWriteBandwidth are bytes in a second, as
	// quantities ("100Mi").
	ParameterReadBandwidth  = "readBandwidth"
	ParameterWriteBandwidth = "writeBandwidth"

	// unlimited is no limit, like a key that is not there: a class needs one key at least.
	unlimited = "max"
)

var allowedLimits = []string{ParameterReadIOPS, ParameterWriteIOPS, ParameterReadBandwidth, ParameterWriteBandwidth}

// ParseLimits reads the parameters of a VolumeAttributesClass, which CSI calls mutable
// parameters, strictly. What is not named is not limited; nil is no limit at all. Every
// problem is named at once; the error is a Refusal.
func ParseLimits(params map[string]string) (*berth.VolumeLimits, error) {
	var problems []string
	limits := berth.VolumeLimits{}
	for key, text := range params {
		var problem string
		switch key {
		case ParameterReadIOPS:
			limits.ReadIOPS, problem = parseIOPS(key, text)
		case ParameterWriteIOPS:
			limits.WriteIOPS, problem = parseIOPS(key, text)
		case ParameterReadBandwidth:
			limits.ReadBytesPerSecond, problem = parseBandwidth(key, text)
		case ParameterWriteBandwidth:
			limits.WriteBytesPerSecond, problem = parseBandwidth(key, text)
		default:
			problem = fmt.Sprintf("parameter %q is not known%s; allowed are %s", key, didYouMean(key, allowedLimits), strings.Join(allowedLimits, ", "))
		}
		if problem != "" {
			problems = append(problems, problem)
		}
	}
	switch {
	case len(problems) > 0:
		slices.Sort(problems)
		return nil, refuse("%s", strings.Join(problems, "; "))
	case limits == berth.VolumeLimits{}:
		return nil, nil
	}
	return &limits, nil
}

func parseIOPS(key, text string) (limit int64, problem string) {
	if text == unlimited {
		return 0, ""
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 || n > berth.MaxIOPS {
		return 0, fmt.Sprintf("parameter %s: %q is not a number of operations per second; allowed are whole numbers from 1 to %d, and %s for no limit",
			key, text, berth.MaxIOPS, unlimited)
	}
	return int64(n), ""
}

func parseBandwidth(key, text string) (limit int64, problem string) {
	if text == unlimited {
		return 0, ""
	}
	q, err := resource.ParseQuantity(text)
	// A quantity is rounded to what can be counted, so the bounds come first.
	if err != nil || q.Sign() <= 0 || q.Cmp(*resource.NewQuantity(math.MaxInt64, resource.BinarySI)) >= 0 || q.Cmp(*resource.NewQuantity(q.Value(), resource.BinarySI)) != 0 {
		return 0, fmt.Sprintf("parameter %s: %q is not a number of bytes per second; allowed are whole quantities from 1 to less than 8Ei, such as 100Mi, and %s for no limit",
			key, text, unlimited)
	}
	return q.Value(), ""
}

// CheckLimits refuses limits of a mode that has no block device of its own to each
// volume.
func CheckLimits(mode berth.Mode, limits *berth.VolumeLimits) error {
	if limits != nil && mode == berth.ModeHostpath {
		return refuse("mode hostpath cannot be limited: its volumes share the block device of their pool; use a StorageClass of mode lvm or device, or no VolumeAttributesClass")
	}
	return nil
}

// SameLimits reports whether two limits are the same; nil limits nothing.
func SameLimits(a, b *berth.VolumeLimits) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// limitsOf are those of the claim's VolumeAttributesClass. A claim without one costs no
// request.
func (p *Provisioner) limitsOf(ctx context.Context, claim *corev1.PersistentVolumeClaim, mode berth.Mode) (*berth.VolumeLimits, error) {
	if claim.Spec.VolumeAttributesClassName == nil || *claim.Spec.VolumeAttributesClassName == "" {
		return nil, nil
	}
	name := *claim.Spec.VolumeAttributesClassName
	class := &storagev1.VolumeAttributesClass{}
	switch err := p.live.Get(ctx, types.NamespacedName{Name: name}, class); {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("VolumeAttributesClass %q of the claim does not exist; create it, or make the claim anew with another", name)
	case err != nil:
		return nil, fmt.Errorf("read VolumeAttributesClass %q of the claim: %w", name, err)
	case class.DriverName != berth.DriverName:
		return nil, refuse("VolumeAttributesClass %q is for the driver %s, and the StorageClass for %s; make the claim anew with a class of %s",
			name, class.DriverName, berth.DriverName, berth.DriverName)
	}
	limits, err := ParseLimits(class.Parameters)
	if err == nil {
		err = CheckLimits(mode, limits)
	}
	if err != nil {
		return nil, refuse("VolumeAttributesClass %q: %v", name, err)
	}
	return limits, nil
}
