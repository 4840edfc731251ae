package proto

import (
	"strings"
	"testing"
)

const (
	boxOne = "/ip4/203.0.113.7/tcp/4001/p2p/12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"
	boxTwo = "/dns4/example.org/udp/4001/quic-v1/p2p/12D3KooWEChVMMMzV8acJ53mJHrw1pQ27UAGkCxWXLJutbeUMvVu"
	alsOne = "/ip4/203.0.113.7/udp/4001/quic-v1/p2p/12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"
)

func TestSeveralAddressesOfOneBoxAreOneBox(t *testing.T) {
	n, err := ParseNetwork([]byte("bootstrap = [\"" + boxOne + "\", \"" + boxTwo + "\", \"" + alsOne + "\"]\nrelays = [\"" + boxTwo + "\"]\npsk = \"swarm.key\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(n.Bootstrap) != 2 || len(n.Bootstrap[0].Addrs) != 2 || len(n.Bootstrap[1].Addrs) != 1 || len(n.Relays) != 1 || n.PSK != "swarm.key" {
		t.Errorf("%+v", n)
	}
}

func TestANetworkThatIsNoneIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "neither",
		"bootstrap = []":                  "neither",
		"bootstrp = [\"" + boxOne + "\"]": "unknown key bootstrp",
		"[more]\nbootstrap = [\"" + boxOne + "\"]":                                                           "unknown key more",
		"bootstrap = \"" + boxOne + "\"":                                                                     "",
		"bootstrap = [\"12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X\"]":                             "ends in /p2p/ID",
		"relays = [\"/ip4/203.0.113.7/tcp/4001\"]":                                                           "relays",
		"relays = [\"" + boxOne + "/p2p-circuit/p2p/12D3KooWEChVMMMzV8acJ53mJHrw1pQ27UAGkCxWXLJutbeUMvVu\"]": "through a relay",
		"bootstrap = [" + strings.Repeat("\""+boxOne+"\",", maxBoxes+1) + "]":                                "more than",
		strings.Repeat("#", MaxNetwork+1):                                                                    "longer than",
		"bootstrap = [\"\x1b[2J\"]":                                                                          "",
	} {
		_, err := ParseNetwork([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
		if err != nil && strings.ContainsRune(err.Error(), '\x1b') {
			t.Errorf("a raw escape in %q", err)
		}
	}
}

// FuzzParseNetwork: never panics, and what it takes is bounded and dialable.
func FuzzParseNetwork(f *testing.F) {
	f.Add("bootstrap = [\"" + boxOne + "\"]\nrelays = [\"" + boxTwo + "\"]\npsk = \"k\"\n")
	f.Add("bootstrap = [\"" + boxOne + "\", \"" + alsOne + "\"]\n")
	f.Add("[a]\nb = 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := ParseNetwork([]byte(text))
		if err != nil {
			return
		}
		if len(n.Bootstrap)+len(n.Relays) == 0 || len(n.Bootstrap) > maxBoxes || len(n.Relays) > maxBoxes {
			t.Errorf("%d and %d boxes", len(n.Bootstrap), len(n.Relays))
		}
		for _, box := range append(n.Bootstrap, n.Relays...) {
			if box.ID == "" || len(box.Addrs) == 0 {
				t.Errorf("box %v", box)
			}
		}
	})
}
