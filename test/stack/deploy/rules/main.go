// SPDX-License-Identifier: Apache-2.0

// Judges rules and expressions by Prometheus' own parser and engine:
//
//	rules check FILE...               rule files, as promtool check rules does
//	rules uses FILE...                `METRIC` or `METRIC LABEL` for each metric and each label
//	                                  of it that the expressions of rule files (.yaml) and
//	                                  dashboards (.json) name; and an error for what does not parse
//	rules fires FILE SCRAPE...        the alerts of a rule file that fire after these scrapes, one
//	                                  a minute, the last of them now: each is a file of metrics.
//	                                  An alert that has to hold (for) fires if it holds in each
//	                                  scrape of that time. An error if its annotations name a
//	                                  label that it does not have
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/expfmt"
	prom "github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

var expressions = parser.NewParser(parser.Options{})

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: rules check|uses|fires FILE, and more files")
	}
	switch command, files := args[0], args[1:]; command {
	case "check":
		var all []error
		for _, f := range files {
			_, err := parse(f)
			all = append(all, err)
		}
		return errors.Join(all...)
	case "uses":
		return printUses(files)
	case "fires":
		return printFiring(files[0], files[1:])
	default:
		return fmt.Errorf("%s: not a command", command)
	}
}

func parse(file string) (*rulefmt.RuleGroups, error) {
	groups, errs := rulefmt.ParseFile(file, false, prom.UTF8Validation, expressions, nil)
	return groups, errors.Join(errs...)
}

func printUses(files []string) error {
	uses := map[string]bool{}
	for _, f := range files {
		all, err := expressionsOf(f)
		if err != nil {
			return err
		}
		if len(all) == 0 {
			return fmt.Errorf("%s: no expressions", f)
		}
		for _, e := range all {
			tree, err := expressions.ParseExpr(e)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", f, e, err)
			}
			collect(tree, uses)
		}
	}
	for _, u := range slices.Sorted(maps.Keys(uses)) {
		fmt.Println(u)
	}
	return nil
}

// collect adds the metrics of an expression, with the labels that it selects and groups by.
func collect(tree parser.Expr, uses map[string]bool) {
	parser.Inspect(tree, func(node parser.Node, path []parser.Node) error {
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		uses[selector.Name] = true
		for _, m := range selector.LabelMatchers {
			if m.Name != prom.MetricNameLabel {
				uses[selector.Name+" "+m.Name] = true
			}
		}
		for _, above := range path {
			var by []string
			switch above := above.(type) {
			case *parser.AggregateExpr:
				by = above.Grouping
			case *parser.BinaryExpr:
				if above.VectorMatching != nil {
					by = above.VectorMatching.MatchingLabels
				}
			}
			for _, label := range by {
				uses[selector.Name+" "+label] = true
			}
		}
		return nil
	})
}

// expressionsOf returns the expressions of a rule file or of a dashboard.
func expressionsOf(file string) (all []string, _ error) {
	if filepath.Ext(file) != ".json" {
		groups, err := parse(file)
		if err != nil {
			return nil, err
		}
		for _, g := range groups.Groups {
			for _, r := range g.Rules {
				all = append(all, r.Expr)
			}
		}
		return all, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var dashboard any
	if err := json.Unmarshal(text, &dashboard); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var walk func(any)
	walk = func(value any) {
		switch value := value.(type) {
		case map[string]any:
			for key, v := range value {
				if e, ok := v.(string); ok && key == "expr" {
					// Grafana puts a duration there.
					all = append(all, strings.ReplaceAll(e, "$__rate_interval", "5m"))
				}
				walk(v)
			}
		case []any:
			for _, v := range value {
				walk(v)
			}
		}
	}
	walk(dashboard)
	return all, nil
}

const interval = time.Minute

// printFiring prints the alerts that fire, each once.
func printFiring(file string, scrapes []string) error {
	groups, err := parse(file)
	if err != nil {
		return err
	}
	now := time.Now()
	all, err := read(scrapes, now)
	if err != nil {
		return err
	}
	engine := promql.NewEngine(promql.EngineOpts{Logger: slog.New(slog.DiscardHandler), MaxSamples: 1e6,
		Timeout: time.Minute, Parser: expressions})
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			firing := true
			for at := now.Add(-time.Duration(r.For)); !at.After(now); at = at.Add(interval) {
				query, err := engine.NewInstantQuery(context.Background(), all, nil, r.Expr, at)
				if err != nil {
					return err
				}
				result, err := query.Exec(context.Background()).Vector()
				if err != nil {
					return fmt.Errorf("%s: %w", r.Alert, err)
				}
				firing = firing && len(result) > 0
				if err := checkTexts(r, result); err != nil {
					return err
				}
			}
			if firing {
				fmt.Println(r.Alert)
			}
		}
	}
	return nil
}

var labelInText = regexp.MustCompile(`\$labels\.(\w+)`)

// checkTexts fails if an annotation of an alert names a label that its series do not have.
func checkTexts(r rulefmt.Rule, result promql.Vector) error {
	for _, text := range r.Annotations {
		for _, m := range labelInText.FindAllStringSubmatch(text, -1) {
			for _, s := range result {
				if !s.Metric.Has(m[1]) {
					return fmt.Errorf("%s: no label %s: %s", r.Alert, m[1], s.Metric)
				}
			}
		}
	}
	return nil
}

// scraped are the series of some scrapes, by their labels.
type scraped map[string]*series

type series struct {
	labels  labels.Labels
	samples []chunks.Sample
}

// sample is a number at a time. The engine asks it for nothing else.
type sample struct {
	chunks.Sample
	at     int64
	number float64
}

func (s sample) T() int64                 { return s.at }
func (s sample) ST() int64                { return 0 }
func (s sample) F() float64               { return s.number }
func (s sample) Type() chunkenc.ValueType { return chunkenc.ValFloat }

// read reads files of metrics, the last of which was scraped now.
func read(files []string, now time.Time) (storage.Queryable, error) {
	all := scraped{}
	for i, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		reader := expfmt.NewTextParser(prom.UTF8Validation)
		families, err := reader.TextToMetricFamilies(f)
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		at := now.Add(-interval * time.Duration(len(files)-1-i)).UnixMilli()
		for _, family := range families {
			samples, err := expfmt.ExtractSamples(&expfmt.DecodeOptions{Timestamp: prom.Time(at)}, family)
			if err != nil {
				return nil, err
			}
			for _, s := range samples {
				all.add(s, at)
			}
		}
	}
	return &storage.MockQueryable{MockQuerier: &storage.MockQuerier{
		SelectMockFunction: func(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
			return all.selected(matchers)
		},
	}}, nil
}

func (all scraped) add(s *prom.Sample, at int64) {
	key := s.Metric.String()
	if all[key] == nil {
		b := labels.NewScratchBuilder(len(s.Metric) + 2)
		for name, value := range s.Metric {
			b.Add(string(name), string(value))
		}
		// As every scrape has them.
		b.Add("instance", "node-1:9440")
		b.Add("job", "nix-closure")
		b.Sort()
		all[key] = &series{labels: b.Labels()}
	}
	all[key].samples = append(all[key].samples, sample{at: at, number: float64(s.Value)})
}

func (all scraped) selected(matchers []*labels.Matcher) storage.SeriesSet {
	set := &seriesSet{at: -1}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		s := all[key]
		differs := func(m *labels.Matcher) bool { return !m.Matches(s.labels.Get(m.Name)) }
		if !slices.ContainsFunc(matchers, differs) {
			set.all = append(set.all, storage.NewListSeries(s.labels, s.samples))
		}
	}
	return set
}

type seriesSet struct {
	all []storage.Series
	at  int
}

func (s *seriesSet) Next() bool                      { s.at++; return s.at < len(s.all) }
func (s *seriesSet) At() storage.Series              { return s.all[s.at] }
func (*seriesSet) Err() error                        { return nil }
func (*seriesSet) Warnings() annotations.Annotations { return nil }
