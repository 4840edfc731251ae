package proc

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of CPU time in proc(5).
const tick = 10 * time.Millisecond

// stat is what /proc/PID/stat says of a process.
type stat struct {
	parent int
	cpu    time.Duration // also that of children that have ended
}

// parseStat reads the text of /proc/PID/stat; the name in it may hold anything.
func parseStat(text string) (stat, error) {
	words := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(words) < 15 {
		return stat{}, fmt.Errorf("stat %q is too short", text)
	}
	parent, err := strconv.Atoi(words[1])
	if err != nil {
		return stat{}, err
	}
	s := stat{parent: parent}
	for _, w := range words[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.ParseInt(w, 10, 64)
		if err != nil {
			return stat{}, err
		}
		s.cpu += time.Duration(n) * tick
	}
	return s, nil
}

func readStat(pid int) (stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(data))
}

// descendants lists a process and all that it started and that live, the
// process itself first.
func descendants(pid int) []int {
	children := map[int][]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		child, _ := strconv.Atoi(filepath.Base(dir))
		if s, err := readStat(child); err == nil {
			children[s.parent] = append(children[s.parent], child)
		}
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// CPU is the time that a process and all that it started have used.
func (p *Process) CPU() (sum time.Duration) {
	for _, pid := range descendants(p.PID()) {
		if s, err := readStat(pid); err == nil {
			sum += s.cpu
		}
	}
	return sum
}

// RSS is the resident memory of a process and all that it started, in bytes.
func (p *Process) RSS() (sum int64) {
	for _, pid := range descendants(p.PID()) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			continue
		}
		if words := strings.Fields(string(data)); len(words) > 1 {
			pages, _ := strconv.ParseInt(words[1], 10, 64)
			sum += pages * int64(os.Getpagesize())
		}
	}
	return sum
}
