package report

import (
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestQuantiles(t *testing.T) {
	values := []float64{4, 1, 3, 2}
	for part, want := range map[float64]float64{0: 1, 0.5: 2.5, 1: 4} {
		if got := Quantile(values, part); got != want {
			t.Errorf("%g: got %g, want %g", part, got, want)
		}
	}
	if Median(nil) != 0 || Median([]float64{7}) != 7 {
		t.Error("of none and of one")
	}
}

// some are results of two peers and one that refuses.
func some() (rs Results) {
	add := func(measure, peer string, values ...float64) {
		for i, v := range values {
			rs = append(rs, Result{Measure: measure, Peer: peer, Round: i + 1, Value: v})
		}
	}
	add("goodput-up-1", Own, 100, 300, 200)
	add("goodput-up-1", "ssh", 200, 200, 100)
	add("memory-1000", Own, 28)
	add("memory-9000", Own, 25)
	add("memory-1000", "kubo-tls", 50)
	return append(rs, Result{Measure: "memory-9000", Peer: "kubo-tls", Round: 1, Error: "refused at 1763: EOF"})
}

var two = []Peer{{Own, "p2ptun"}, {"ssh", "`ssh -L`"}, {"kubo-tls", "Kubo"}, {"frp", "frp"}}

func TestRatioIsTheMedianOfTheRounds(t *testing.T) {
	// 0.5, 1.5 and 2: not the ratio of the medians, which is 1.
	if got, ok := some().Ratio("goodput-up-1", Own, "ssh"); !ok || got != 1.5 {
		t.Errorf("got %g, %v", got, ok)
	}
	if _, ok := some().Ratio("goodput-up-1", Own, "frp"); ok {
		t.Error("a ratio to what was not measured")
	}
}

func TestTablesShowMediansRatiosAndRefusals(t *testing.T) {
	text := some().Tables(two)
	for _, want := range []string{
		"| | 1 up |\n", "| p2ptun | 200 (100–300) |\n", "| `ssh -L` | 200 (100–200) **×1.50** |\n",
		"| | at 1,000 | at 9,000 |\n", "| Kubo | 50.0 **×0.56** | refused at 1,763 |\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "frp") {
		t.Error("a row of who was not measured")
	}
}

func TestNumbersHaveThreeDigitsThatCount(t *testing.T) {
	for v, want := range map[float64]string{1234567.4: "1,234,567", 999.6: "1,000", 12.345: "12.3", 1.234: "1.23", 0.05: "0.050", 0: "0.00"} {
		if got := number(v); got != want {
			t.Errorf("%g: got %s, want %s", v, got, want)
		}
	}
}

func TestTargetsNameMeasuresThatThereAre(t *testing.T) {
	for _, target := range Targets() {
		if _, ok := Lookup(target.Measure); !ok {
			t.Errorf("no measure %s", target.Measure)
		}
	}
}

func TestTargetsAreJudged(t *testing.T) {
	rs := some()
	for _, c := range []struct {
		target     Target
		known, met bool
	}{
		{Target{"goodput-up-1", []string{"ssh"}, 1.5}, true, true},
		{Target{"goodput-up-1", []string{"ssh"}, 1.6}, true, false},
		{Target{"memory-1000", []string{"frp", "kubo-tls"}, 0.6}, true, true},
		{Target{"memory-9000", nil, 24}, true, false},
		{Target{"memory-9000", nil, 25}, true, true},
		{Target{"memory-9000", kubos, 1}, false, false},
	} {
		if v := rs.Judge(c.target); v.Known != c.known || v.Met != c.met {
			t.Errorf("%+v: got %+v", c.target, v)
		}
	}
	if text := rs.Verdicts(); !strings.Contains(text, "| ≤ 24 KiB | 25.0 KiB | **not met** |") {
		t.Errorf("got\n%s", text)
	}
}

func TestBestIsTheLeastWhereLessIsBetter(t *testing.T) {
	rs := Results{{Measure: "cpu-up-1", Peer: "a", Value: 3}, {Measure: "cpu-up-1", Peer: "b", Value: 2}, {Measure: "goodput-up-1", Peer: "a", Value: 3}, {Measure: "goodput-up-1", Peer: "b", Value: 2}}
	for measure, want := range map[string]string{"cpu-up-1": "b", "goodput-up-1": "a"} {
		m, _ := Lookup(measure)
		if got := rs.best(m, []string{"a", "b", "c"}); got != want {
			t.Errorf("%s: got %s, want %s", measure, got, want)
		}
	}
}

func TestThePictureIsXMLWithABarForEach(t *testing.T) {
	text := some().SVG(two)
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		_, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if bars := strings.Count(text, "<rect x="); bars != 2 {
		t.Errorf("%d bars, want those of memory at 1,000", bars)
	}
}

func TestReplacesBetweenTheMarkersAlone(t *testing.T) {
	got, err := Replace("before\n"+begin+"\nold\n"+end+"\nafter\n", "new\n")
	if want := "before\n" + begin + "\n\nnew\n\n" + end + "\nafter\n"; err != nil || got != want {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := Replace("no markers", "new"); err == nil {
		t.Error("a document without markers is taken")
	}
}

func TestAFileOfResultsIsReadAsItWasWritten(t *testing.T) {
	run, rs, err := read(strings.NewReader(`{"machine":"m","rounds":2}` + "\n" + `{"measure":"rss","peer":"ssh","round":1,"value":2.5}` + "\n"))
	if err != nil || run.Rounds != 2 || len(rs) != 1 || rs[0].Value != 2.5 {
		t.Errorf("got %+v, %+v, %v", run, rs, err)
	}
	if _, _, err := read(strings.NewReader("")); err == nil {
		t.Error("an empty file is taken")
	}
}

func TestTheRoundsOfFilesFollowEachOther(t *testing.T) {
	dir := t.TempDir()
	var names []string
	for i, value := range []string{"1", "2"} {
		names = append(names, filepath.Join(dir, strconv.Itoa(i)))
		lines := `{"rounds":1}` + "\n" + `{"measure":"rss","peer":"ssh","round":1,"value":` + value + "}\n"
		if err := os.WriteFile(names[i], []byte(lines), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, rs, err := Read(names)
	if err != nil || len(rs) != 2 || rs[0].Round != 1 || rs[1].Round != 2 || rs[1].Value != 2 {
		t.Errorf("got %+v, %v", rs, err)
	}
}
