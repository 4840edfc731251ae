package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"benchmark/peers"
	"benchmark/report"
)

// show prints the tables and writes them where that is wanted.
func (f *flags) show(run report.Run, results report.Results) error {
	var rows []report.Peer
	for _, p := range peers.All() {
		rows = append(rows, report.Peer{Name: p.Name, Title: p.Note})
	}
	text := run.String() + "\n" + results.Tables(rows) + "### Targets\n\n" + results.Verdicts()
	fmt.Print(text)
	if !f.write {
		return nil
	}
	path := filepath.Join(f.root, "docs", "benchmarks.md")
	document, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	replaced, err := report.Replace(string(document), text)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := os.WriteFile(path, []byte(replaced), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(f.root, "docs", "benchmarks.svg"), []byte(results.SVG(rows)), 0o644)
}

// describe says how this run is made.
func (f *flags) describe(programs map[string]string) report.Run {
	run := report.Run{
		Machine: machine(), Rounds: f.rounds, SizeMiB: f.size, Seconds: f.time.Seconds(), Versions: versions(programs),
	}
	for _, p := range f.peers {
		if p.Missing(programs) != "" {
			run.Skipped = append(run.Skipped, p.Name)
		}
	}
	return run
}

// machine names the processor and the system, and no more.
func machine() string {
	model := runtime.GOARCH
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if key, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	kernel := regexp.MustCompile(`^\d+\.\d+`).FindString(string(release)) // the rest may name the machine
	return fmt.Sprintf("%d cores of %s, Linux %s, %s", runtime.NumCPU(), model, kernel, runtime.Version())
}
