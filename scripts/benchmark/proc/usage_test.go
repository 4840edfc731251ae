package proc

import (
	"context"
	"os"
	"testing"
	"time"
)

func TestCPUTimeIsReadWhateverTheNameHolds(t *testing.T) {
	s, err := parseStat("42 (a ) b) S 7 42 42 0 -1 4194560 100 0 0 0 3 4 5 6 20 0 1 0 100 0 0")
	if err != nil || s.parent != 7 || s.cpu != 180*time.Millisecond {
		t.Errorf("got %+v, %v", s, err)
	}
	if _, err := parseStat("42 (a) S"); err == nil {
		t.Error("a short line is taken")
	}
}

func TestAProcessIsStoppedWithWhatItStarted(t *testing.T) {
	p, err := Start([]string{"sh", "-c", "sh -c 'echo inner; read x' <&3 & wait"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if _, err := p.WaitFor(context.Background(), "never printed"); err == nil {
		t.Error("a line that is not there was found")
	}
	if pids := descendants(os.Getpid()); pids[0] != os.Getpid() {
		t.Errorf("descendants are %v", pids)
	}
}
