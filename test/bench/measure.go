// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nix-closure/nix-closure/test/speed"
)

const (
	// fewest is how many values each row has at least.
	fewest = 15
	// tooSlow is the time of one run after which there are no others.
	tooSlow = 6 * time.Second
	// slow is the time of one run after which there are no more than the fewest.
	slow = 400 * time.Millisecond
)

// A subject is one way to do one thing, which is measured many times.
type subject struct {
	row speed.Row
	// run does it once, and returns the value: milliseconds, if the row has no unit.
	run func() (float64, error)
	// beside is what each run is divided by, and runs directly before or after it.
	beside func() (float64, error)
	// of has the values that each value is divided by, if nothing runs beside it: those of
	// the same round.
	of *subject
	// others are compared in rows of their own, with the value of the same round.
	others []other

	values, besides []float64
	last            time.Duration // of one run, with what is beside it
}

// other is what a subject is also compared to.
type other struct {
	name string
	to   *subject
}

// group is what is measured together.
type group struct {
	name string
	// quick: it is measured in a quick run too.
	quick bool
	// budget is how long it may take; each subject has its fewest runs all the same.
	budget  time.Duration
	measure func(*bench, time.Duration) error
}

// absent notes that a subject cannot be measured.
func (b *bench) absent(s *subject, why string) {
	b.results.Rows = append(b.results.Rows, s.row.Absent(why))
}

// failed notes that something went wrong that should not have.
func (b *bench) failed(row speed.Row, err error) {
	b.results.Rows = append(b.results.Rows, row.Absent("failed: "+err.Error()))
	b.failures = append(b.failures, fmt.Sprintf("%s: %v", row.Name(), err))
}

// measure takes the values of all subjects, and adds their rows. In each round every
// subject has its turn, so that a drift of the machine hits all alike, and in another
// order each time, so that none always follows the same one.
func (b *bench) measure(subjects []*subject, budget time.Duration) error {
	began := time.Now()
	random := rand.New(rand.NewPCG(3, 4))
	gone := map[*subject]bool{}
	once := func(s *subject, keep bool) error {
		err := s.once(random, keep)
		if errors.Is(err, errStopped) {
			return err
		}
		if err != nil {
			gone[s] = true
			b.failed(s.row, err)
		}
		return nil
	}
	for i, s := range subjects {
		b.progress.show("warming up %d of %d: %s", i+1, len(subjects), s.row.Name())
		for range 2 {
			if err := once(s, false); err != nil {
				return err
			}
			if s.last > slow || gone[s] {
				break
			}
		}
		if !gone[s] && s.last > tooSlow {
			gone[s] = true
			b.absent(s, fmt.Sprintf("too slow: one run takes %.0f s", s.last.Seconds()))
		}
	}
	for round := 0; round < b.runs && (round < b.fewest || time.Since(began) < budget); round++ {
		order := random.Perm(len(subjects))
		for i, k := range order {
			s := subjects[k]
			if gone[s] || round >= b.fewest && s.last > slow {
				continue
			}
			b.progress.show("round %d, %d of %d: %s", round+1, i+1, len(order), s.row.Name())
			if err := once(s, true); err != nil {
				return err
			}
		}
	}
	for _, s := range subjects {
		if gone[s] {
			continue
		}
		if s.of != nil && !gone[s.of] {
			n := min(len(s.values), len(s.of.values))
			s.values, s.besides = s.values[:n], s.of.values[:n]
		}
		b.results.Rows = append(b.results.Rows, s.row.Summary(s.values, s.besides))
		for _, o := range s.others {
			if n := min(len(s.values), len(o.to.values)); n > 0 && !gone[o.to] {
				row := s.row
				row.Of = o.name
				row.Note = "the same runs"
				b.results.Rows = append(b.results.Rows, row.Summary(s.values[:n], o.to.values[:n]))
			}
		}
	}
	return nil
}

// once runs the subject once, and what is beside it.
func (s *subject) once(random *rand.Rand, keep bool) error {
	began := time.Now()
	defer func() { s.last = time.Since(began) }()
	var value, beside float64
	steps := []func() error{
		func() (err error) { value, err = s.run(); return err },
	}
	if s.beside != nil {
		steps = append(steps, func() (err error) { beside, err = s.beside(); return err })
	}
	for _, i := range random.Perm(len(steps)) {
		if err := steps[i](); err != nil {
			return err
		}
	}
	if keep {
		s.values = append(s.values, value)
		if s.beside != nil {
			s.besides = append(s.besides, beside)
		}
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
