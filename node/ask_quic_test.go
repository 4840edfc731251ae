package node

import (
	"context"
	"path/filepath"
	"testing"

	"p2ptun/proto"
)

// A peer may answer, and close its side, before the asker has ended its own:
// over QUIC, ending it then fails.
func TestQuickAnswerOverQUICIsAnAnswer(t *testing.T) {
	ctx := t.Context()
	var nodes [2]*Node
	for i := range nodes {
		n, err := New(ctx, Config{KeyPath: filepath.Join(t.TempDir(), "key"), ListenAddrs: []string{"/ip4/127.0.0.1/udp/0/quic-v1"}, Trusted: func(string) bool { return true }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Close() })
		nodes[i] = n
	}
	asker, answerer := nodes[0], nodes[1]
	answerer.HandleAsk(func(context.Context, string, *proto.Question) proto.Verdict { return proto.Verdict_VERDICT_OK })
	peers, err := Resolve(ctx, answerer.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	release, err := asker.Want(peers[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	if err := asker.Connect(ctx, answerer.ID(), 0); err != nil {
		t.Fatal(err)
	}
	for i := range 2000 {
		if v, err := asker.Ask(ctx, answerer.ID(), &proto.Question{Protocol: "/x/test"}); err != nil || v != proto.Verdict_VERDICT_OK {
			t.Fatalf("question %d: %v, %v", i, v, err)
		}
	}
}
