// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"image/color"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/nix-closure/nix-closure/test/speed"
)

const (
	chartWidth  = 18 * vg.Centimeter
	chartHeight = 11 * vg.Centimeter
)

// chart is a file of the page.
type chart struct {
	name, title string
	draw        func(*speed.Results) (*plot.Plot, error)
}

// charts are in the order of the groups that show them.
var charts = map[string][]chart{
	"start": {
		{"start-crun", "A container from its creation to its removal, crun", startChart("crun")},
		{"start-runc", "A container from its creation to its removal, runc", startChart("runc")},
	},
	"first": {{"first", "The first start of a closure, 1,000 paths", bars("first", "", "ms")}},
	pods: {
		{"pods-first", "The first pod of a closure, 1,000 paths", bars(pods, firstPod, "ms")},
		{"pods-node", "The median start of 110 pods, four at a time", bars(pods, fullNodeStart, "ms")},
	},
	"memory": {{"memory", "Kernel memory (slab) of each of 200 containers of one closure, 1,000 paths",
		bars("memory", slabEach, "KiB")}},
}

// palette is told apart by people who see colours in other ways too.
var palette = []color.RGBA{
	{R: 0, G: 114, B: 178, A: 255}, {R: 230, G: 159, A: 255}, {R: 0, G: 158, B: 115, A: 255}, {R: 204, G: 121, B: 167,
		A: 255}, {R: 86, G: 180, B: 233, A: 255},
	{R: 213, G: 94, A: 255}, {R: 120, G: 120, B: 120, A: 255}, {R: 0, A: 255},
}

// caption is what a chart must say wherever it is shown.
func caption(r *speed.Results) string {
	var versions []string
	for _, name := range []string{"crun", "runc", "podman", "containerd", "nix", "nix-snapshotter"} {
		if v := r.Fact(name); v != "" {
			versions = append(versions, name+" "+v)
		}
	}
	return r.Fact("machine") + "; " + r.Fact("kernel") + "; " + cmp.Or(r.Fact("run"), "no date") + "\n" +
		strings.Join(versions, ", ")
}

func newChart(r *speed.Results, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Padding = vg.Points(8)
	p.X.Label.Text, p.Y.Label.Text = strings.TrimSpace(x+"\n"+caption(r)), y
	p.X.Label.TextStyle.Font.Size, p.Y.Label.TextStyle.Font.Size = font.Length(8), font.Length(9)
	p.BackgroundColor = color.White
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.TextStyle.Font.Size = font.Length(9)
	return p
}

// startChart has a line for each way: the closure's size against the time.
func startChart(runtime string) func(*speed.Results) (*plot.Plot, error) {
	return func(r *speed.Results) (*plot.Plot, error) {
		p := newChart(r, "store paths of the closure", "ms, median")
		p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
		p.X.Tick.Marker, p.Y.Tick.Marker = plainTicks{}, plainTicks{}
		var sizes []float64
		lines := map[string]plotter.XYs{}
		var order []string
		for _, row := range r.Rows {
			if row.Group != "start" || row.N == 0 || isComparison(row) ||
				row.Runtime != runtime && row.Of != floor+", "+runtime {
				continue
			}
			if row.Paths > 0 {
				if lines[row.Variant] == nil {
					order = append(order, row.Variant)
				}
				lines[row.Variant] = append(lines[row.Variant], plotter.XY{X: float64(row.Paths), Y: row.Median})
				sizes = append(sizes, float64(row.Paths))
			}
		}
		if row := r.Find(func(row speed.Row) bool {
			return row.Group == "start" && row.Variant == floor && row.Runtime == runtime && row.N > 0
		}); row != nil && len(sizes) > 0 {
			order = append([]string{floor}, order...)
			lines[floor] = plotter.XYs{{X: slices.Min(sizes), Y: row.Median}, {X: slices.Max(sizes), Y: row.Median}}
		}
		if len(order) == 0 {
			return nil, nil
		}
		for i, name := range order {
			slices.SortFunc(lines[name], func(a, b plotter.XY) int { return cmp.Compare(a.X, b.X) })
			line, points, err := plotter.NewLinePoints(lines[name])
			if err != nil {
				return nil, err
			}
			line.Color, points.Color = palette[i%len(palette)], palette[i%len(palette)]
			line.Width, points.Radius, points.Shape = vg.Points(1.5), vg.Points(2.5), draw.CircleGlyph{}
			if name == floor {
				line.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
				p.Add(line)
				p.Legend.Add(name, line)
				continue
			}
			p.Add(line, points)
			p.Legend.Add(name, line, points)
		}
		p.Add(plotter.NewGrid())
		return p, nil
	}
}

// bars has a bar for each way, with the number beside it.
func bars(group, what, unit string) func(*speed.Results) (*plot.Plot, error) {
	return func(r *speed.Results) (*plot.Plot, error) {
		var names []string
		var values plotter.Values
		for _, row := range r.Rows {
			if row.Group == group && (what == "" || row.What == what) && row.N > 0 && !isComparison(row) &&
				row.Variant != addedSlabOverlay {
				names, values = append(names, row.Variant), append(values, row.Median)
			}
		}
		if len(values) == 0 {
			return nil, nil
		}
		slices.Reverse(names)
		slices.Reverse(values)
		p := newChart(r, unit+", median", "")
		chart, err := plotter.NewBarChart(values, vg.Points(16))
		if err != nil {
			return nil, err
		}
		chart.Horizontal, chart.Color, chart.LineStyle.Width = true, palette[0], 0
		labels := plotter.XYLabels{}
		for i, v := range values {
			labels.XYs = append(labels.XYs, plotter.XY{X: v, Y: float64(i)})
			labels.Labels = append(labels.Labels, " "+speed.Number(v))
		}
		numbers, err := plotter.NewLabels(labels)
		if err != nil {
			return nil, err
		}
		for i := range numbers.TextStyle {
			numbers.TextStyle[i].YAlign = -0.5
		}
		p.Add(chart, numbers)
		p.NominalY(names...)
		p.X.Min, p.X.Max = 0, slices.Max(values)*1.12
		p.X.Tick.Marker = evenTicks{}
		return p, nil
	}
}

// plainTicks are powers of ten, written as numbers.
type plainTicks struct{}

func (plainTicks) Ticks(low, high float64) (ticks []plot.Tick) {
	for power := 1.0; power <= high*10; power *= 10 {
		for _, part := range []float64{1, 2, 5} {
			if v := power * part; v >= low && v <= high {
				ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%.0f", v)})
			}
		}
	}
	return ticks
}

// evenTicks are plot's own, with short numbers.
type evenTicks struct{}

func (evenTicks) Ticks(low, high float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(low, high)
	for i, t := range ticks {
		if t.Label != "" {
			ticks[i].Label = strconv.FormatFloat(t.Value, 'f', -1, 64)
		}
	}
	return ticks
}

// svg draws a chart. It is nil where there are no rows for it.
func (c chart) svg(r *speed.Results) ([]byte, error) {
	p, err := c.draw(r)
	if err != nil || p == nil {
		return nil, err
	}
	p.Title.Text = c.title
	w, err := p.WriterTo(chartWidth, chartHeight, "svg")
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if _, err := w.WriteTo(&text); err != nil {
		return nil, err
	}
	license := []byte("\n<!-- SPDX-License-Identifier: Apache-2.0 -->\n")
	return bytes.Replace(text.Bytes(), []byte("\n"), license, 1), nil
}
