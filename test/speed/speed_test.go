// SPDX-License-Identifier: Apache-2.0

package speed

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// The ratio is of pairs: a machine that is slow for a while is slow for both.
func TestRatioIsOfPairs(t *testing.T) {
	values, beside := []float64{2, 20, 4}, []float64{1, 10, 2}
	if got := Ratio(values, beside); got != 2 {
		t.Errorf("the ratio is %v", got)
	}
	r := Row{Variant: "a"}.Summary(values, beside)
	if r.N != 3 || r.Median != 4 || r.Ratio != 2 {
		t.Errorf("%+v", r)
	}
	// The ratio of medians would be the same here, and is not in general.
	if got := Ratio([]float64{1, 6, 8}, []float64{1, 2, 10}); got != 1 {
		t.Errorf("the ratio is %v", got)
	}
}

func TestPercentile(t *testing.T) {
	for percentile, want := range map[float64]float64{0: 1, 50: 2.5, 100: 4, 10: 1.3} {
		if got := Percentile([]float64{4, 1, 3, 2}, percentile); got != want {
			t.Errorf("%v: %v, want %v", percentile, got, want)
		}
	}
}

// What was written is what is read.
func TestFile(t *testing.T) {
	want := &Results{
		Facts: []Fact{{"kernel", "Linux 6.18"}, {"cores", "2"}},
		Rows: []Row{
			{Group: "start", What: "w", Variant: "a, b", Paths: 10, Runtime: "crun", N: 15, Median: 12.34, P10: 0.123,
				P90: 123.4, Unit: "ms", Ratio: 1.234, Of: "floor"},
			Row{Group: "start", What: "w", Variant: "c"}.Absent("it fails"),
		},
	}
	file := filepath.Join(t.TempDir(), "a.csv")
	if err := want.Write(file); err != nil {
		t.Fatal(err)
	}
	got, err := Read(file)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v %+v\nwant %+v", err, got, want)
	}
	if got.Same(want.Rows[1]) == nil || got.Same(Row{Group: "start"}) != nil {
		t.Error("Same finds another row")
	}
	if Number(0.123) != "0.12" || Number(12.34) != "12.3" || Number(123.4) != "123" {
		t.Error("a number has other digits")
	}
	if _, err := Read("/proc/version"); err == nil || !strings.Contains(err.Error(), "columns") {
		t.Errorf("another file gives %v", err)
	}
}
