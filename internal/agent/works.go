// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	// workPatience is how long a worker waits for what may take hours (a copy, a wipe) before
	// it goes on with other volumes. Nearly all of it is done by then.
	workPatience = 5 * time.Second
	// workInterval is how often is told how far it has come.
	workInterval = 15 * time.Second
)

// errWorking: what was asked for is being done.
var errWorking = fmt.Errorf("%w: it goes on", volume.ErrBusy)

// works is what is done for volumes apart from the workers that asked for it, so that these
// can go on. The zero value is ready to use.
type works struct {
	mu      sync.Mutex
	running map[string]*work
	// waiting are those who asked while their place was full, by place and key.
	waiting map[string]map[string]func()
}

type work struct {
	place  string
	done   chan struct{}
	cancel context.CancelFunc
	// what and percent say how far it is.
	what    string
	percent atomic.Int64
	// entry and err may be read when it is done.
	entry ledger.Entry
	err   error
}

// do begins what f does, or finds it begun under that key, and waits for it a while: only the
// first time. It returns what f has returned, once, or an error that is errWorking. Then
// finished is called when it has come to its end, and do is to be called again. The context is
// f's, and must be one that outlives the call.
func (w *works) do(ctx context.Context, key, what string, finished func(), f func(ctx context.Context, progress func(doneBytes, totalBytes int64)) (ledger.Entry, error)) (ledger.Entry, error) {
	return w.doIn(ctx, "", key, what, finished, f)
}

// doIn is do in a place, if that has a name, which may hang: each call that does not come back costs
// the process a thread, so that no more than laneWidth go on there at once. Who finds it full gets an
// error that is errWorking, and finished is called when one has come to its end.
func (w *works) doIn(ctx context.Context, place, key, what string, finished func(), f func(ctx context.Context, progress func(doneBytes, totalBytes int64)) (ledger.Entry, error)) (ledger.Entry, error) {
	w.mu.Lock()
	job, found := w.running[key], true
	if job == nil {
		if others := w.goingOnIn(place); others >= laneWidth {
			defer w.mu.Unlock()
			if w.waiting == nil {
				w.waiting = map[string]map[string]func(){}
			}
			if w.waiting[place] == nil {
				w.waiting[place] = map[string]func(){}
			}
			w.waiting[place][key] = finished
			return ledger.Entry{}, fmt.Errorf("waiting for %d others in pool %s, which take long: %w", others, place, errWorking)
		}
		found = false
		ctx, cancel := context.WithCancel(ctx)
		job = &work{place: place, done: make(chan struct{}), cancel: cancel, what: what}
		if w.running == nil {
			w.running = map[string]*work{}
		}
		w.running[key] = job
		waited := make(chan struct{})
		defer close(waited)
		go func() {
			defer cancel()
			job.entry, job.err = f(ctx, job.tell)
			close(job.done)
			for _, next := range w.called(place) {
				next()
			}
			<-waited
			if !w.taken(key, job) {
				finished()
			}
		}()
	}
	w.mu.Unlock()
	if !found {
		patience := time.NewTimer(workPatience)
		defer patience.Stop()
		select {
		case <-job.done:
		case <-patience.C:
		}
	}
	select {
	case <-job.done:
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.running[key] == job {
			delete(w.running, key)
		}
		return job.entry, job.err
	default:
	}
	if percent := job.percent.Load(); percent > 0 {
		return ledger.Entry{}, fmt.Errorf("%s, %d %%: %w", job.what, percent, errWorking)
	}
	return ledger.Entry{}, fmt.Errorf("%s: %w", job.what, errWorking)
}

// goingOnIn returns how many go on in a place; 0 for none.
func (w *works) goingOnIn(place string) (n int) {
	if place == "" {
		return 0
	}
	for _, job := range w.running {
		if job.place != place {
			continue
		}
		select {
		case <-job.done:
		default:
			n++
		}
	}
	return n
}

// called returns whom to tell that there is room in a place. All are: one that is gone meanwhile
// does not come.
func (w *works) called(place string) []func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	waiting := w.waiting[place]
	delete(w.waiting, place)
	return slices.Collect(maps.Values(waiting))
}

func (w *works) taken(key string, job *work) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running[key] != job
}

// end cancels what is done under a key and waits until it has come to its end.
func (w *works) end(ctx context.Context, key string) error {
	w.mu.Lock()
	job := w.running[key]
	w.mu.Unlock()
	if job == nil {
		return nil
	}
	job.cancel()
	select {
	case <-job.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running[key] == job {
		delete(w.running, key)
	}
	return nil
}

func (j *work) tell(doneBytes, totalBytes int64) {
	if totalBytes > 0 {
		j.percent.Store(int64(float64(doneBytes) / float64(totalBytes) * 100))
	}
}

// isWorking reports whether an error says that what was asked for goes on.
func isWorking(err error) bool { return errors.Is(err, errWorking) }
