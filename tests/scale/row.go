// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/berth-dev/berth/tests/samples"
)

// row is what was measured of one number of nodes. What has several values has one for each
// minute, or for each round.
type row struct {
	Date    string `json:"date"`
	Nodes   int    `json:"nodes"`
	Volumes int    `json:"volumes"`

	// StartSeconds until all agents were ready for the first time, on a cluster without
	// volumes, started one after the other (startEvery).
	StartSeconds float64 `json:"startSeconds"`
	// StartWhat is what they asked for until then.
	StartWhat map[string]int `json:"startWhat"`
	// FillPerSecond is how many volumes were made per second before anything was measured.
	FillPerSecond float64 `json:"fillPerSecond"`

	// Of an agent and a minute in which nothing happens.
	IdleRequests  samples.Of     `json:"idleRequests"` // but watches
	IdleRenewals  samples.Of     `json:"idleRenewals"` // watches
	IdleWatch     samples.Of     `json:"idleWatchBytes"`
	IdleReceived  samples.Of     `json:"idleReceivedBytes"`
	IdleSent      samples.Of     `json:"idleSentBytes"`
	IdleWhat      map[string]int `json:"idleWhat"`
	IdleReal      float64        `json:"idleReal"`        // requests of the agent in a process of its own, by its own count
	IdleProvision float64        `json:"idleProvisioner"` // the same of the provisioner
	IdleServed    float64        `json:"idleServed"`      // requests the apiserver has counted, less the benchmark's, all together
	// IdleProcessor is what the apiserver used of one processor meanwhile, in percent.
	IdleProcessor float64 `json:"idleProcessor"`

	HollowKiB          float64 `json:"hollowKiB"` // more for each hollow agent
	AgentKiB           int     `json:"agentKiB"`  // the one in a process of its own
	ProvisionerKiB     int     `json:"provisionerKiB"`
	ProvisionerPeakKiB int     `json:"provisionerPeakKiB"`
	APIServerKiB       int     `json:"apiserverKiB"`

	// Claims bound in one round, and how long that took; and the median claim in it, and
	// that which 95 % do not exceed.
	Claims      int        `json:"claims"`
	BindSeconds samples.Of `json:"bindSeconds"`
	BindMedian  samples.Of `json:"bindMedian"`
	BindP95     samples.Of `json:"bindP95"`

	// From the kill of the apiserver until it was ready again, and until every watch of
	// every agent was up to date.
	HerdReady    samples.Of `json:"herdReady"`
	HerdSynced   samples.Of `json:"herdSynced"`
	HerdPeak     samples.Of `json:"herdPeak"`   // most requests answered in one second
	HerdMinute   samples.Of `json:"herdMinute"` // requests in the minute that begins with the first answer
	HerdRefused  samples.Of `json:"herdRefused"`
	HerdReceived samples.Of `json:"herdReceivedBytes"` // by all agents until the minute was over
	// ProvisionerEnds is how often the provisioner has lost its lease and was started again.
	ProvisionerEnds int `json:"provisionerEnds"`
}

// results are rows by the number of nodes, kept in a file so that sizes can be measured one
// at a time. An empty path keeps none.
type results []row

func readResults(path string) (results, error) {
	if path == "" {
		return nil, nil
	}
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r results
	if err := json.Unmarshal(content, &r); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return r, nil
}

// with replaces the row of that many nodes.
func (r results) with(latest row) results {
	r = slices.DeleteFunc(slices.Clone(r), func(old row) bool { return old.Nodes == latest.Nodes })
	r = append(r, latest)
	slices.SortFunc(r, func(a, b row) int { return cmp.Compare(a.Nodes, b.Nodes) })
	return r
}

func (r results) write(path string) error {
	if path == "" {
		return nil
	}
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(content, '\n'), 0o644)
}
