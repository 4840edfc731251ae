package command

import (
	"encoding/json"
	"testing"
	"time"

	"p2ptun/access"
)

func TestAllowLastsAsLongAsItSays(t *testing.T) {
	for range 3 { // the file has whole seconds
		before := time.Now()
		var rule access.Rule
		code, out, stderr := run(t, "--json", "allow", "ssh", somePeer, "--for", "1s")
		if err := json.Unmarshal([]byte(out), &rule); code != exitOK || err != nil {
			t.Fatalf("exit code %d, %v: %s%s", code, err, out, stderr)
		}
		if lasts := rule.Until.Sub(before); lasts < time.Second || time.Until(rule.Until) > 2*time.Second {
			t.Errorf("asked for 1s, it lasts %s", lasts)
		}
	}
}
