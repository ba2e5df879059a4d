// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"
)

const (
	warmUps = 3
	// tooSlow is the time after which a case is not run again.
	tooSlow = 30 * time.Second
	// patience is how long all timed runs of one case may take; a slow case has
	// fewer runs, but never fewer than fewest.
	patience = 6 * time.Second
	fewest   = 5
)

// check runs each case once, with the program that counts, and drops those that
// cannot be measured. Only a container with very many mounts may be one.
func check(cases []*testCase, p *progress) error {
	for i, c := range cases {
		p.show("checking %d of %d: %v", i+1, len(cases), c)
		begin := time.Now()
		err := c.check()
		switch {
		case err == nil && time.Since(begin) > tooSlow:
			c.absent = fmt.Sprintf("too slow: one run takes %v", time.Since(begin).Round(time.Second))
		case err != nil && (c.variant == mounts || c.variant == mountsNew) && !errors.Is(err, errStopped):
			c.absent = "fails: " + err.Error()
		case err != nil:
			return fmt.Errorf("%v: %w", c, err)
		}
	}
	return nil
}

// check sees to it that the container has the store paths that it should have,
// and that something is behind each of them.
func (c *testCase) check() error {
	entries := c.paths
	if c.links {
		entries++
	}
	if c.wholeStore {
		// Nix keeps a directory of its own beside the store paths.
		all, err := os.ReadDir(storeDir)
		if err != nil {
			return err
		}
		entries = len(all)
	}
	if c.prepare != nil {
		if err := c.prepare(); err != nil {
			return err
		}
	}
	seen, err := c.runtime.output(c.counting)
	if err != nil {
		return err
	}
	if want := fmt.Sprintln(entries, c.paths); seen != want {
		return fmt.Errorf("the container sees the wrong store: entries and those not empty are %q and should be %q",
			seen, want)
	}
	return nil
}

// measure takes the samples of all cases. In each round every case has its
// turn, so that a drift of the machine hits all alike, and in another order
// each time, so that none always follows the one with most mounts.
func measure(cases []*testCase, runs int, p *progress) error {
	due := map[*testCase]int{}
	for i, c := range cases {
		if c.absent != "" {
			continue
		}
		p.show("warming up %d of %d: %v", i+1, len(cases), c)
		estimate, err := c.warmUp()
		if err != nil {
			return fmt.Errorf("%v: %w", c, err)
		}
		due[c] = min(runs, max(fewest, int(patience/estimate)))
	}
	random := rand.New(rand.NewPCG(3, 4))
	for round := range runs {
		p.show("round %d of %d", round+1, runs)
		random.Shuffle(len(cases), func(i, k int) { cases[i], cases[k] = cases[k], cases[i] })
		for _, c := range cases {
			// Fewer runs than rounds are spread over all rounds.
			if len(c.samples) >= (round+1)*due[c]/runs {
				continue
			}
			took, err := c.time()
			if err != nil {
				return fmt.Errorf("%v: %w", c, err)
			}
			c.samples = append(c.samples, took)
		}
	}
	return nil
}

// warmUp says how long the case takes.
func (c *testCase) warmUp() (time.Duration, error) {
	var last, sum time.Duration
	for range warmUps {
		took, err := c.time()
		if err != nil {
			return 0, err
		}
		last, sum = took, sum+took
		if sum > patience/4 {
			break
		}
	}
	return last, nil
}

// time runs the case once, always directly after a container that is not timed.
// Moving a process into a cgroup waits for an RCU grace period, 10 to 20 ms,
// unless another one was moved a few milliseconds ago. Without the container
// before it, a run would have this wait or not depending on how long the
// previous case took.
func (c *testCase) time() (time.Duration, error) {
	if c.prepare != nil {
		if err := c.prepare(); err != nil {
			return 0, err
		}
	}
	if _, err := c.runtime.time(c.before); err != nil {
		return 0, err
	}
	return c.runtime.time(c.bundle)
}
