// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/device/devicetest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// released makes a volume on the host's one disk, writes on it and deletes it,
// while nobody cleans.
func released(t *testing.T, policy volume.WipePolicy) *node {
	t.Helper()
	n := newNode(t, devicetest.NewFileHost(t, 10*mib))
	n.stop()
	rec, err := n.backend.Create(t.Context(), spec(1, 1))
	must(t, err)
	write(t, n.host, "disk-0", 0, "secret")
	write(t, n.host, "disk-0", 5*mib, "secret")
	must(t, n.backend.Delete(t.Context(), volumetest.ID(1), &rec, policy))
	return n
}

// clean runs a cleaner over the node until a wipe has ended, and returns how.
func clean(t *testing.T, registry device.Registry, disks device.Opener) error {
	t.Helper()
	return cleanWith(t, device.CleanerOptions{Registry: registry, Disks: disks})
}

func cleanWith(t *testing.T, o device.CleanerOptions) error {
	t.Helper()
	ended := wipeLog{ended: make(chan error, 100)}
	o.Observer, o.Log = ended, quiet
	c := device.NewCleaner(o)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx)
	}()
	defer func() {
		cancel()
		<-done
	}()
	select {
	case err := <-ended.ended:
		return err
	case <-ctx.Done():
		t.Fatal("no wipe has ended")
		return nil
	}
}

type wipeLog struct{ ended chan error }

func (wipeLog) WipeStarted(string, volume.WipePolicy) {}
func (wipeLog) WipeProgress(string, int64, int64)     {}

func (l wipeLog) WipeEnded(_ string, _ volume.WipePolicy, err error) {
	select {
	case l.ended <- err:
	default: // the test has heard enough
	}
}

func state(t *testing.T, n *node) device.State {
	t.Helper()
	c, err := n.registry.Resolve(t.Context(), "bd-disk-0")
	must(t, err)
	return c.State
}

func TestCleanerWipes(t *testing.T) {
	t.Parallel()
	for policy, leaves := range map[volume.WipePolicy]bool{
		volume.WipeZero:       false,
		volume.WipeDiscard:    false, // plain files cannot, so they are zeroed
		volume.WipeSignatures: true,
	} {
		t.Run(string(policy), func(t *testing.T) {
			t.Parallel()
			n := released(t, policy)
			must(t, clean(t, n.registry, n.host.Opener()))
			if got := state(t, n); got != device.StateUnclaimed {
				t.Errorf("the disk is %s", got)
			}
			data := content(t, n.host, "disk-0")
			if strings.HasPrefix(data, "secret") {
				t.Error("the head was not wiped")
			}
			if got := strings.Contains(data, "secret"); got != leaves {
				t.Errorf("the middle still holds the data: %v, want %v", got, leaves)
			}
		})
	}
}

// With the policy none the disk keeps its bytes and goes to nobody.
func TestCleanerLeavesPolicyNone(t *testing.T) {
	t.Parallel()
	n := released(t, volume.WipeNone)
	before := content(t, n.host, "disk-0")
	listed := listedRegistry{n.registry, make(chan struct{})}
	c := device.NewCleaner(device.CleanerOptions{Registry: listed, Disks: n.host.Opener(), Log: quiet})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx)
	}()
	<-listed.listed
	c.Kick()
	<-listed.listed // what the first list led to was started by now
	cancel()
	<-done
	if got := state(t, n); got != device.StateReleased {
		t.Errorf("the disk is %s, want Released", got)
	}
	if content(t, n.host, "disk-0") != before {
		t.Error("the disk was touched")
	}
	if _, err := n.backend.Create(t.Context(), spec(2, 1)); !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("Create = %v, want ErrNoSpace", err)
	}
}

// listedRegistry tells each time that it was asked what is released.
type listedRegistry struct {
	*devicetest.Registry
	listed chan struct{}
}

func (r listedRegistry) Released(ctx context.Context) ([]device.ReleasedDisk, error) {
	disks, err := r.Registry.Released(ctx)
	select {
	case r.listed <- struct{}{}:
	case <-ctx.Done():
	}
	return disks, err
}

// Each of these is refused under the disk's lock, whatever the list of released
// disks said, and not a byte is touched (I2).
func TestCleanerRefuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(t *testing.T, n *node, r *skewed)
		want   error
		opener device.Opener
		prober device.Prober
	}{
		"another size": {change: func(_ *testing.T, _ *node, r *skewed) { r.now.SizeBytes++ }, want: volume.ErrIdentity},
		"grown": {want: volume.ErrIdentity, change: func(t *testing.T, n *node, r *skewed) {
			r.now.SizeBytes = 11 * mib
			must(t, os.Truncate(pathOf(t, n.host, "disk-0"), 11*mib))
		}},
		"another serial":  {change: func(_ *testing.T, _ *node, r *skewed) { r.now.IdentityValue = "x" }, want: volume.ErrIdentity},
		"another scheme":  {change: func(_ *testing.T, _ *node, r *skewed) { r.now.IdentityScheme = "wwn" }, want: volume.ErrIdentity},
		"another token":   {change: func(_ *testing.T, _ *node, r *skewed) { r.now.WipeToken = "y" }},
		"no token":        {change: func(_ *testing.T, _ *node, r *skewed) { r.now.WipeToken = "" }},
		"claimed by now":  {change: func(_ *testing.T, _ *node, r *skewed) { r.now.State = device.StateClaimed }},
		"unclaimed now":   {change: func(_ *testing.T, _ *node, r *skewed) { r.now.State = device.StateUnclaimed }},
		"a second serial": {change: func(t *testing.T, n *node, _ *skewed) { n.host.Add(t, "disk-0", 10*mib) }, want: volume.ErrIdentity},
		"pulled":          {change: func(t *testing.T, n *node, _ *skewed) { n.host.Pull(t, "disk-0") }, want: volume.ErrNotFound},
		"in use": {want: volume.ErrInUse, change: func(t *testing.T, n *node, _ *skewed) {
			held, err := n.host.Opener().Open(t.Context(), pathOf(t, n.host, "disk-0"))
			must(t, err)
			t.Cleanup(func() { _ = held.Close() })
		}},
		"another filesystem": {prober: ext4(), want: volume.ErrIdentity, change: func(_ *testing.T, _ *node, r *skewed) {
			r.now.Content = &device.Content{Type: "ext4", UUID: "other"}
		}},
		"content where there was none": {prober: ext4(), want: volume.ErrIdentity, change: func(_ *testing.T, _ *node, r *skewed) { r.now.Content = &device.Content{} }},
		"content that cannot be read":  {prober: prober{err: errUnread}, want: errUnread, change: func(_ *testing.T, _ *node, r *skewed) { r.now.Content = &device.Content{} }},
		"content that nothing tells":   {change: func(_ *testing.T, _ *node, r *skewed) { r.now.Content = &device.Content{} }, want: errAny},
		"another disk under its name": {want: volume.ErrIdentity, change: func(t *testing.T, n *node, r *skewed) {
			r.firstPath = n.host.Add(t, "bystander", 10*mib).Path
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := released(t, volume.WipeZero)
			file := pathOf(t, n.host, "disk-0")
			before := content(t, n.host, "disk-0")
			now, err := n.registry.Resolve(t.Context(), "bd-disk-0")
			must(t, err)
			r := &skewed{Registry: n.registry, was: now, now: now}
			test.change(t, n, r)
			err = cleanWith(t, device.CleanerOptions{Registry: r, Disks: n.host.Opener(), Prober: test.prober})
			if err == nil || test.want != nil && !errors.Is(test.want, errAny) && !errors.Is(err, test.want) {
				t.Fatalf("the wipe ended with %v, want %v", err, test.want)
			}
			if name == "pulled" {
				n.host.Push(t, "disk-0")
			} else if pathOf(t, n.host, "disk-0") != file {
				t.Fatal("the disk has moved")
			}
			if !strings.HasPrefix(content(t, n.host, "disk-0"), before) {
				t.Fatal("a refused wipe has touched the disk")
			}
			if message := n.registry.Message("bd-disk-0"); (message == "") != (test.want == nil) {
				t.Errorf("the registry was told %q", message)
			}
		})
	}
}

var (
	errUnread = errors.New("input/output error")
	errAny    = errors.New("whatever is said")
)

// skewed changes what Resolve says.
type skewed struct {
	*devicetest.Registry
	was, now  device.Claimed
	firstPath string // what the first Resolve says
}

func (r *skewed) Resolve(ctx context.Context, name string) (device.Claimed, error) {
	c, err := r.Registry.Resolve(ctx, name)
	if err != nil {
		return c, err
	}
	if r.firstPath != "" {
		c.Path, r.firstPath = r.firstPath, ""
		return c, nil
	}
	if r.now != r.was {
		return r.now, nil
	}
	return c, nil
}

// A disk that was pulled before its wipe is wiped when it is back and the cleaner
// is told so; no timer runs meanwhile.
func TestCleanerWaitsForAPulledDisk(t *testing.T) {
	t.Parallel()
	n := newNode(t, devicetest.NewFileHost(t, 10*mib))
	rec, err := n.backend.Create(t.Context(), spec(1, 1))
	must(t, err)
	write(t, n.host, "disk-0", 0, "secret")
	n.host.Pull(t, "disk-0")
	must(t, n.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeZero))
	found, err := n.backend.List(t.Context())
	must(t, err)
	if len(found) != 0 {
		t.Fatalf("List shows %v after Delete", found)
	}
	n.host.Push(t, "disk-0")
	n.cleaner.Kick()
	n.settle(t)
	if got := state(t, n); got != device.StateUnclaimed {
		t.Errorf("the disk is %s", got)
	}
	if strings.Contains(content(t, n.host, "disk-0"), "secret") {
		t.Error("the disk was not wiped")
	}
}

// A disk that will not come clean stays Released and says why; when it does, it
// is given back.
func TestCleanerRetries(t *testing.T) {
	t.Parallel()
	n := released(t, volume.WipeZero)
	opener := &brokenOpener{Opener: n.host.Opener(), failures: 3}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := wipeLog{ended: make(chan error, 100)}
	c := device.NewCleaner(device.CleanerOptions{
		Registry: n.registry, Disks: opener, Observer: ended, Log: quiet,
		RetryMin: time.Millisecond, RetryMax: 2 * time.Millisecond,
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx)
	}()
	for i := range 3 {
		if err := <-ended.ended; !errors.Is(err, errMedium) {
			t.Fatalf("wipe %d ended with %v", i, err)
		}
	}
	must(t, <-ended.ended)
	cancel()
	<-done
	if got := state(t, n); got != device.StateUnclaimed {
		t.Errorf("the disk is %s", got)
	}
}

// A disk that is clean is not wiped once more because that could not be recorded.
func TestCleanerRecordsWithoutAnotherWipe(t *testing.T) {
	t.Parallel()
	n := released(t, volume.WipeZero)
	registry := &awayRegistry{Registry: n.registry, failures: 4}
	opener := &brokenOpener{Opener: n.host.Opener()}
	ended := wipeLog{ended: make(chan error, 100)}
	c := device.NewCleaner(device.CleanerOptions{
		Registry: registry, Disks: opener, Observer: ended, Log: quiet,
		RetryMin: time.Millisecond, RetryMax: 2 * time.Millisecond,
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx)
	}()
	for err := range ended.ended {
		if err == nil {
			break
		}
	}
	cancel()
	<-done
	if opener.wipes != 1 || registry.failures != 0 {
		t.Errorf("%d wipes, %d answers are still to fail", opener.wipes, registry.failures)
	}
	if got := state(t, n); got != device.StateUnclaimed {
		t.Errorf("the disk is %s", got)
	}
}

// awayRegistry cannot be written for a while.
type awayRegistry struct {
	*devicetest.Registry
	failures int
}

func (r *awayRegistry) FinishWipe(ctx context.Context, name, token string, clean bool, message string) error {
	if r.failures > 0 {
		r.failures--
		return errors.New("connection refused")
	}
	return r.Registry.FinishWipe(ctx, name, token, clean, message)
}

var errMedium = errors.New("input/output error")

type brokenOpener struct {
	device.Opener
	mu       sync.Mutex
	failures int
	wipes    int // that went to their end
}

func (o *brokenOpener) Open(ctx context.Context, path string) (device.OpenDisk, error) {
	disk, err := o.Opener.Open(ctx, path)
	return brokenDisk{disk, o}, err
}

type brokenDisk struct {
	device.OpenDisk
	opener *brokenOpener
}

func (d brokenDisk) Wipe(ctx context.Context, size int64, policy volume.WipePolicy, progress func(int64)) error {
	d.opener.mu.Lock()
	defer d.opener.mu.Unlock()
	if d.opener.failures > 0 {
		d.opener.failures--
		return errMedium
	}
	d.opener.wipes++
	return d.OpenDisk.Wipe(ctx, size, policy, progress)
}

// A list of released disks that lags behind does not make the cleaner spin.
func TestCleanerDoesNotSpin(t *testing.T) {
	t.Parallel()
	n := released(t, volume.WipeZero)
	now, err := n.registry.Resolve(t.Context(), "bd-disk-0")
	must(t, err)
	yesterday := &skewed{Registry: n.registry, was: now, now: now}
	yesterday.now.WipeToken = "of today"
	ended := wipeLog{ended: make(chan error, 100)}
	c := device.NewCleaner(device.CleanerOptions{Registry: yesterday, Disks: n.host.Opener(), Observer: ended, Log: quiet})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	must(t, c.Run(ctx))
	if got := len(ended.ended); got > 1 {
		t.Errorf("the cleaner has tried %d times in 0.2 s", got)
	}
}

// No more disks are wiped at once than allowed, and all in the end.
func TestCleanerParallelism(t *testing.T) {
	t.Parallel()
	sizes := []int64{mib, mib, mib, mib, mib, mib, mib}
	n := newNode(t, devicetest.NewFileHost(t, sizes...))
	n.stop()
	for i := range sizes {
		_, err := n.backend.Create(t.Context(), spec(i, 1))
		must(t, err)
		must(t, n.backend.Delete(t.Context(), volumetest.ID(i), nil, volume.WipeZero))
	}
	gate := &gateOpener{Opener: n.host.Opener(), entered: make(chan struct{}), leave: make(chan struct{})}
	c := device.NewCleaner(device.CleanerOptions{Registry: n.registry, Disks: gate, Parallelism: 3, Log: quiet})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx)
	}()
	for range 3 {
		<-gate.entered
	}
	select {
	case <-gate.entered:
		t.Error("a fourth disk is wiped beside three")
	case <-time.After(50 * time.Millisecond):
	}
	close(gate.leave)
	for range len(sizes) - 3 {
		<-gate.entered
	}
	wait, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	must(t, n.registry.WaitClean(wait))
	cancel()
	<-done
}

type gateOpener struct {
	device.Opener
	entered, leave chan struct{}
}

func (o *gateOpener) Open(ctx context.Context, path string) (device.OpenDisk, error) {
	o.entered <- struct{}{}
	<-o.leave
	return o.Opener.Open(ctx, path)
}

// A wipe by zeroes writes no faster than it may; what it writes at once does not wait.
func TestRateOfWipes(t *testing.T) {
	t.Parallel()
	n := released(t, volume.WipeZero)
	ended := wipeLog{ended: make(chan error, 1)}
	const perSecond = 4 * mib
	c := device.NewCleaner(device.CleanerOptions{
		Registry: n.registry, Disks: &slowlyTelling{Opener: n.host.Opener()}, Observer: ended, Log: quiet, RateBytesPerSecond: perSecond,
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	began := time.Now()
	go func() {
		defer close(done)
		_ = c.Run(ctx)
	}()
	if err := <-ended.ended; err != nil {
		t.Error(err)
	}
	// 8 of 10 MiB are told before the last piece, of which the first need not wait.
	if took := time.Since(began); took < 7*time.Second/4 {
		t.Errorf("10 MiB took %s at 4 MiB a second", took)
	}
	cancel()
	<-done
}

// slowlyTelling are disks that tell of each 2 MiB.
type slowlyTelling struct{ device.Opener }

func (s *slowlyTelling) Open(ctx context.Context, path string) (device.OpenDisk, error) {
	disk, err := s.Opener.Open(ctx, path)
	return tellingDisk{disk}, err
}

type tellingDisk struct{ device.OpenDisk }

func (d tellingDisk) Wipe(ctx context.Context, sizeBytes int64, policy volume.WipePolicy, progress func(int64)) error {
	for done := int64(2 * mib); done <= sizeBytes; done += 2 * mib {
		progress(done)
	}
	return d.OpenDisk.Wipe(ctx, sizeBytes, policy, nil)
}
