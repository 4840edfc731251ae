package main

import "testing"

func TestWhatIsNamedIsChosen(t *testing.T) {
	f, err := parse([]string{"-quick", "-only", "ssh,p2ptun", "-measures", "ping,lab-20"})
	if err != nil {
		t.Fatal(err)
	}
	if len(f.peers) != 2 || len(f.works) != 1 || len(f.labs) != 1 || f.rounds != 1 {
		t.Errorf("got %d peers, %d works, %d labs, %d rounds", len(f.peers), len(f.works), len(f.labs), f.rounds)
	}
	if f, err := parse([]string{"-rounds", "2", "-quick"}); err != nil || f.rounds != 2 || f.size != 32 {
		t.Errorf("quick, but two rounds: %+v, %v", f, err)
	}
	for _, wrong := range [][]string{{"-only", "telnet"}, {"-measures", "speed"}, {"-rounds", "0"}, {"more"}} {
		if _, err := parse(wrong); err == nil {
			t.Errorf("%v is taken", wrong)
		}
	}
}
