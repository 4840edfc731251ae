package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"p2ptun/node"
)

func TestRelaysAreChosenOnlyWhereADHTIsEnteredAndNoneIsNamed(t *testing.T) {
	const box = `["/ip4/192.0.2.1/tcp/4001/p2p/` + somebody + `"]` + "\n"
	named := []string{"/ip4/192.0.2.1/tcp/4001/p2p/" + somebody}
	for _, c := range []struct {
		name, file string
		relays     []string
		isRelay    bool
		want       bool
	}{
		{"bootstrap alone", "bootstrap = " + box, nil, false, true},
		{"relays in the file", "bootstrap = " + box + "relays = " + box, nil, false, false},
		{"relays in the command", "bootstrap = " + box, named, false, false},
		{"no DHT", "relays = " + box, nil, false, false},
		{"a relay itself", "bootstrap = " + box, nil, true, false},
	} {
		path := filepath.Join(t.TempDir(), "net.toml")
		if err := os.WriteFile(path, []byte(c.file), 0o600); err != nil {
			t.Fatal(err)
		}
		var cfg node.Config
		if c.isRelay {
			cfg.Relay = &node.RelayService{}
		}
		if err := (Hosting{Network: path, Relays: c.relays}).network(&cfg); err != nil || cfg.AutoRelay != c.want {
			t.Errorf("%s: relays are chosen: %v, %v, want %v", c.name, cfg.AutoRelay, err, c.want)
		}
	}
}
