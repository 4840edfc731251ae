package node

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// childVar makes the test binary play another process: what it does is the
// variable's first word, with a directory of its own as the second.
const childVar = "P2PTUN_TEST_NODE_CHILD"

func TestMain(m *testing.M) {
	if play := os.Getenv(childVar); play != "" {
		what, dir, _ := strings.Cut(play, " ")
		if err := child(what, dir); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// A relay's bandwidth counter has one goroutine in a process, for ever.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/libp2p/go-flow-metrics.(*sweeper).run"))
}

func child(what, dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	switch what {
	case "id":
		id, err := PeerID(ctx, dir+"/key")
		fmt.Println(id)
		return err
	case "lan":
		return childOnLAN(ctx, dir)
	}
	return fmt.Errorf("no such child: %s", what)
}

// childOnLAN runs a node with no configuration. It says its peer ID, reaches
// the peer that it is told, if any, and stays until its stdin ends.
func childOnLAN(ctx context.Context, dir string) error {
	n, err := New(ctx, Config{KeyPath: dir + "/key", PortPath: dir + "/port", LAN: true})
	if err != nil {
		return err
	}
	defer n.Close()
	fmt.Println(n.ID())
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		if err := n.Connect(ctx, in.Text(), 30*time.Second); err != nil {
			return err
		}
		path, ok := n.Path(in.Text())
		fmt.Println("reached", ok, path.Transport, path.Addr)
	}
	return nil
}
