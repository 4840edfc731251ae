package home

import (
	"strings"
	"testing"
)

func FuzzParsePeers(f *testing.F) {
	f.Add("laptop 12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X\n# comment\n")
	f.Add("a /dnsaddr/example.org /ip4/127.0.0.1/tcp/1/p2p/12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X")
	f.Add("1 x\n")
	f.Fuzz(func(t *testing.T, text string) {
		book, err := parsePeers("peers", []byte(text))
		if err != nil {
			return
		}
		for _, p := range book {
			again, err := parsePeers("peers", []byte(p.Name+" "+strings.Join(p.Addrs, " ")+"\n"))
			if err != nil || len(again) != 1 || again[0].Name != p.Name {
				t.Errorf("%v is read again as %v, %v", p, again, err)
			}
		}
	})
}
