package command

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"p2ptun/daemon"
)

// failTimes shows that many connections that were not carried, and gives the
// lines of stdout and stderr.
func failTimes(tl *tool, n int) (out, err []string) {
	var stdout, stderr bytes.Buffer
	tl.Out, tl.Err = &stdout, &stderr
	for range n {
		tl.show(daemon.Event{Event: "refused", ID: "1", Protocol: "/x/a", Peer: "P", Reason: "peer away"})
	}
	return strings.Split(stdout.String(), "\n"), strings.Split(stderr.String(), "\n")
}

func TestBusyClientOfAnAbsentPeerDoesNotFillTheScreen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const plain, many = "p2ptun: connection not carried to /x/a on P: peer away", 10_000
		tl := &tool{screen: true}
		_, lines := failTimes(tl, many)
		if len(lines) != failureBurst+1 || lines[0] != plain || lines[failureBurst-1] != plain {
			t.Fatalf("%d lines: %q", len(lines)-1, lines)
		}
		time.Sleep(failureEvery) // virtual
		_, lines = failTimes(tl, many)
		want := "p2ptun: connection not carried to /x/a on P (and 9980 more that were not shown): peer away"
		if len(lines) != 2 || lines[0] != want {
			t.Fatalf("a second later: %q, want one line %q", lines, want)
		}
		time.Sleep(failureEvery * failureBurst)
		if _, lines = failTimes(tl, 2); len(lines) != 3 || !strings.Contains(lines[0], "9999 more") || lines[1] != plain {
			t.Fatalf("after a calm: %q", lines)
		}
	})
}

func TestEachFailureIsALineOfTheLog(t *testing.T) {
	const many = 1000
	if _, lines := failTimes(new(tool), many); len(lines) != many+1 || strings.Contains(strings.Join(lines, ""), "more") {
		t.Errorf("%d lines, want %d", len(lines)-1, many)
	}
}

func TestEachFailureIsAnEventForAProgram(t *testing.T) {
	const many = 1000
	out, _ := failTimes(&tool{json: true, quiet: true}, many)
	if len(out) != many+1 {
		t.Errorf("%d lines on stdout, want %d", len(out)-1, many)
	}
}
