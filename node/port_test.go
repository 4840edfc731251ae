package node

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func choose(t testing.TB, path string) int {
	t.Helper()
	port, err := choosePort(path)
	must(t, err)
	return port
}

func TestThePortIsKeptAcrossRuns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port")
	first := choose(t, path)
	for range 3 {
		if port := choose(t, path); port != first {
			t.Errorf("port %d, then %d", first, port)
		}
	}
}

func TestAnotherPortIsUsedWhileTheKeptOneIsTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port")
	first := choose(t, path)
	for name, take := range map[string]func(addr string) (interface{ Close() error }, error){
		"tcp": func(addr string) (interface{ Close() error }, error) { return net.Listen("tcp", addr) },
		"udp": func(addr string) (interface{ Close() error }, error) { return net.ListenPacket("udp", addr) },
	} {
		taker, err := take(fmt.Sprintf(":%d", first))
		must(t, err)
		if port := choose(t, path); port == first {
			t.Errorf("%s: the port is taken", name)
		}
		taker.Close()
		if port := choose(t, path); port != first {
			t.Errorf("%s: free again, but %d is used instead of %d", name, port, first)
		}
	}
}

func TestAPortThatCannotBeReadIsReplaced(t *testing.T) {
	for _, content := range []string{"", "x", "-1", "65536", "0", "99999999999999999999"} {
		path := filepath.Join(t.TempDir(), "port")
		must(t, os.WriteFile(path, []byte(content), 0o600))
		first := choose(t, path)
		if again := choose(t, path); first == 0 || again != first {
			t.Errorf("%q: %d, then %d", content, first, again)
		}
	}
}
