// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

// CleanerOptions of a Cleaner.
type CleanerOptions struct {
	// Registry of the node's disks.
	Registry Registry
	// Disks opens them; nil means the block devices of this host.
	Disks Opener
	// Prober tells what is on a disk that is to be wiped; nil refuses those of which it is
	// known what they held.
	Prober Prober
	// Parallelism is how many disks are wiped at once; 0 means 2. A wipe by zeroes
	// writes as fast as its disk takes it, so this is what bounds the load on what
	// the disks share.
	Parallelism int
	// RateBytesPerSecond bounds how much all wipes by zeroes together write; 0 means as
	// much as the disks take.
	RateBytesPerSecond int64
	// RetryMin and RetryMax bound the time until a disk that did not come clean is
	// tried again; it doubles from one to the other. 0 means 10 s and 15 min.
	RetryMin, RetryMax time.Duration
	// Observer is told how wipes go; nil for nobody.
	Observer WipeObserver
	// Log receives what happens to each disk; nil means slog.Default.
	Log *slog.Logger
}

// WipeObserver is told how wipes go, for metrics. Its methods must not block.
type WipeObserver interface {
	// WipeStarted is followed by one WipeEnded.
	WipeStarted(diskName string, policy volume.WipePolicy)
	// WipeProgress tells how many of the disk's bytes are done.
	WipeProgress(diskName string, doneBytes, sizeBytes int64)
	// WipeEnded tells how it ended; nil is clean. The registry knows it by then.
	WipeEnded(diskName string, policy volume.WipePolicy, err error)
}

// Cleaner wipes released disks, verifies them and gives them back. What is to be
// wiped is in the registry, so it goes on after any crash: a wipe that was cut
// off starts anew under the same token.
type Cleaner struct {
	CleanerOptions
	kick    chan struct{}
	limiter *rate.Limiter // nil: no limit

	mu      sync.Mutex
	working map[string]bool      // disks at which a worker is
	retries map[string]retryPlan // by token
}

// retryPlan says when a wipe is tried again.
type retryPlan struct {
	after time.Duration
	at    time.Time
	// parked waits for a kick and for no time: the disk is not there.
	parked bool
}

// NewCleaner returns a cleaner that works while Run does.
func NewCleaner(o CleanerOptions) *Cleaner {
	if o.Disks == nil {
		o.Disks = BlockOpener{}
	}
	if o.Parallelism <= 0 {
		o.Parallelism = 2
	}
	if o.RetryMin <= 0 {
		o.RetryMin = 10 * time.Second
	}
	if o.RetryMax < o.RetryMin {
		o.RetryMax = max(15*time.Minute, o.RetryMin)
	}
	if o.Observer == nil {
		o.Observer = noObserver{}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	var limiter *rate.Limiter
	if o.RateBytesPerSecond > 0 {
		limiter = rate.NewLimiter(rate.Limit(o.RateBytesPerSecond), throttleBytes)
	}
	return &Cleaner{
		CleanerOptions: o,
		limiter:        limiter,
		kick:           make(chan struct{}, 1),
		working:        map[string]bool{},
		retries:        map[string]retryPlan{},
	}
}

// Kick makes the cleaner look for released disks now, also for those that failed
// and wait for their retry: a Registry calls it when a disk was released, by whomever, or
// one that was released came back. It does not block.
func (c *Cleaner) Kick() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// Run looks for released disks and wipes them until the context ends, and returns
// when the last worker has. It wakes up for kicks and retries, and for nothing
// else.
func (c *Cleaner) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	done := make(chan struct{}, c.Parallelism)
	listRetry := c.RetryMin
	for ctx.Err() == nil {
		wait, err := c.start(ctx, &workers, done)
		if err != nil {
			c.Log.Error("list the released disks", "error", err)
			wait, listRetry = listRetry, min(2*listRetry, c.RetryMax)
		} else {
			listRetry = c.RetryMin
		}
		c.sleep(ctx, wait, done)
	}
	return nil
}

// sleep waits for a kick, the end of a worker, or, if there is a retry to be
// done, its time.
func (c *Cleaner) sleep(ctx context.Context, wait time.Duration, done <-chan struct{}) {
	var retry <-chan time.Time
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		retry = timer.C
	}
	select {
	case <-ctx.Done():
	case <-c.kick:
		c.mu.Lock()
		for token, plan := range c.retries {
			plan.at, plan.parked = time.Time{}, false
			c.retries[token] = plan
		}
		c.mu.Unlock()
	case <-done:
	case <-retry:
	}
}

// start gives every disk whose time has come to a worker, as many as there may
// be. It returns the time until the next retry, 0 for none.
func (c *Cleaner) start(ctx context.Context, workers *sync.WaitGroup, done chan<- struct{}) (time.Duration, error) {
	released, err := c.Registry.Released(ctx)
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(released)
	var next time.Duration
	for _, disk := range released {
		if disk.Policy == volume.WipeNone || disk.Token == "" || c.working[disk.Name] {
			continue
		}
		plan := c.retries[disk.Token]
		if plan.parked {
			continue
		}
		if wait := time.Until(plan.at); wait > 0 {
			if next == 0 || wait < next {
				next = wait
			}
			continue
		}
		if len(c.working) >= c.Parallelism {
			continue // the end of a worker comes back here
		}
		c.working[disk.Name] = true
		workers.Go(func() {
			c.work(ctx, disk)
			select {
			case done <- struct{}{}:
			default: // there is a wake-up waiting already
			}
		})
	}
	return next, nil
}

// forget drops the plans of wipes that are not open any more.
func (c *Cleaner) forget(released []ReleasedDisk) {
	open := make(map[string]bool, len(released))
	for _, disk := range released {
		open[disk.Token] = true
	}
	for token := range c.retries {
		if !open[token] {
			delete(c.retries, token)
		}
	}
}

// work wipes one disk and tells the registry how it ended.
func (c *Cleaner) work(ctx context.Context, disk ReleasedDisk) {
	c.Observer.WipeStarted(disk.Name, disk.Policy)
	err := c.wipe(ctx, disk)
	if err == nil {
		err = c.recordClean(ctx, disk)
	}

	var plan retryPlan
	switch {
	case err == nil, ctx.Err() != nil: // the next process goes on
	case errors.Is(err, errWipeClosed):
		// The list lags behind; it is not asked again at once.
		plan = c.nextPlan(disk.Token)
	default:
		c.Log.Warn("disk did not come clean; nobody gets it", "disk", disk.Name, "error", err)
		if err := c.Registry.FinishWipe(ctx, disk.Name, disk.Token, false, err.Error()); err != nil {
			c.Log.Error("record why a disk did not come clean", "disk", disk.Name, "error", err)
		}
		plan = c.nextPlan(disk.Token)
		plan.parked = errors.Is(err, volume.ErrNotFound)
	}
	c.Observer.WipeEnded(disk.Name, disk.Policy, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.working, disk.Name)
	if plan.after > 0 {
		c.retries[disk.Token] = plan
	}
}

// recordTries is how often it is tried to record that a disk is clean, with the pauses of
// other retries: for an hour, as these are by default.
const recordTries = 10

// recordClean tells the registry that a disk is clean, and again if it cannot be told: hours
// of zeroes are not begun anew because the API server was away for a moment.
func (c *Cleaner) recordClean(ctx context.Context, disk ReleasedDisk) error {
	pause := c.RetryMin
	for tries := 1; ; tries++ {
		err := c.Registry.FinishWipe(ctx, disk.Name, disk.Token, true, "")
		switch {
		case err == nil:
			c.Log.Info("disk is clean", "disk", disk.Name, "policy", disk.Policy)
			return nil
		case tries == recordTries, errors.Is(err, volume.ErrNotFound), ctx.Err() != nil:
			return fmt.Errorf("record that disk %s is clean: %w", disk.Name, err)
		}
		c.Log.Warn("disk is clean, which cannot be recorded yet", "disk", disk.Name, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, c.RetryMax)
	}
}

func (c *Cleaner) nextPlan(token string) retryPlan {
	c.mu.Lock()
	defer c.mu.Unlock()
	after := c.RetryMin
	if last := c.retries[token].after; last > 0 {
		after = min(2*last, c.RetryMax)
	}
	return retryPlan{after: after, at: time.Now().Add(after)}
}

// errWipeClosed: there is no such wipe any more; the list was of yesterday.
var errWipeClosed = errors.New("this wipe is not open any more")

// wipe proves that the disk is the one that was released, that its wipe is still
// permitted and that nobody has it, and only then erases it (I2). The proof is
// made, and holds, while the disk is open exclusively and locked.
func (c *Cleaner) wipe(ctx context.Context, released ReleasedDisk) error {
	where, err := c.Registry.Resolve(ctx, released.Name)
	if err != nil {
		return fmt.Errorf("resolve disk %s: %w", released.Name, err)
	}
	disk, err := c.Disks.Open(ctx, where.Path)
	if err != nil {
		return fmt.Errorf("take disk %s: %w", released.Name, err)
	}
	err = c.wipeOpen(ctx, disk, released)
	// Closed before the registry hears of it: whoever claims the disk next must be
	// able to open it.
	if closeErr := disk.Close(); closeErr != nil {
		err = errors.Join(err, fmt.Errorf("close disk %s: %w", released.Name, closeErr))
	}
	return err
}

func (c *Cleaner) wipeOpen(ctx context.Context, disk OpenDisk, released ReleasedDisk) error {
	now, err := c.Registry.Resolve(ctx, released.Name)
	if err != nil {
		return fmt.Errorf("resolve disk %s: %w", released.Name, err)
	}
	switch {
	case now.State != StateReleased || now.WipeToken != released.Token || released.Token == "":
		return fmt.Errorf("disk %s: %w", released.Name, errWipeClosed)
	case now.IdentityScheme != released.IdentityScheme || now.IdentityValue != released.IdentityValue:
		return fmt.Errorf("disk %s says %s %s of itself, released was %s %s; it is not touched: %w", released.Name,
			now.IdentityScheme, now.IdentityValue, released.IdentityScheme, released.IdentityValue, volume.ErrIdentity)
	case now.SizeBytes != released.SizeBytes:
		return fmt.Errorf("disk %s has %d bytes, released were %d; it is not touched: %w", released.Name,
			now.SizeBytes, released.SizeBytes, volume.ErrIdentity)
	}
	if err := sameDisk(disk, now); err != nil {
		return fmt.Errorf("disk %s: %w", released.Name, err)
	}
	if err := c.proveContent(ctx, now); err != nil {
		return fmt.Errorf("disk %s: %w", released.Name, err)
	}
	// The path was probed, and may have become another disk's meanwhile.
	if err := sameDisk(disk, now); err != nil {
		return fmt.Errorf("disk %s: %w", released.Name, err)
	}
	policy := released.Policy
	c.Log.Info("wiping disk", "disk", now.Name, "path", now.Path, "sizeBytes", now.SizeBytes, "policy", policy, "volume", released.Owner.Name)
	var before int64
	progress := func(doneBytes int64) {
		c.Observer.WipeProgress(now.Name, doneBytes, now.SizeBytes)
		if policy == volume.WipeZero && doneBytes < now.SizeBytes {
			c.throttle(ctx, doneBytes-before)
		}
		before = doneBytes
	}
	err = disk.Wipe(ctx, now.SizeBytes, policy, progress)
	if policy == volume.WipeDiscard && errors.Is(err, block.ErrDiscardUnsupported) {
		// Slower, and leaves no less unreadable.
		c.Log.Info("disk cannot discard, zeroing it", "disk", now.Name)
		policy, before = volume.WipeZero, 0
		err = disk.Wipe(ctx, now.SizeBytes, policy, progress)
	}
	return err
}

// throttleBytes is what may be written at once before the rate counts.
const throttleBytes = 1 << 20

// throttle waits until so many more bytes may be written, or until the context ends.
func (c *Cleaner) throttle(ctx context.Context, bytes int64) {
	for c.limiter != nil && bytes > 0 {
		n := min(bytes, throttleBytes)
		if c.limiter.WaitN(ctx, int(n)) != nil {
			return // the wipe itself sees that the context has ended
		}
		bytes -= n
	}
}

type noObserver struct{}

func (noObserver) WipeStarted(string, volume.WipePolicy)      {}
func (noObserver) WipeProgress(string, int64, int64)          {}
func (noObserver) WipeEnded(string, volume.WipePolicy, error) {}
