package access

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"

	"go.uber.org/goleak"
)

// childVar makes the test binary write rules, for a test of several processes.
const childVar = "P2PTUN_TEST_SET"

func TestMain(m *testing.M) {
	if path := os.Getenv(childVar); path != "" {
		os.Exit(setMany(path, os.Args[len(os.Args)-1]))
	}
	goleak.VerifyTestMain(m)
}

func setMany(path, child string) int {
	for i := range perChild {
		rule := Rule{Allow: true, Protocol: "/x/" + child + "-" + strconv.Itoa(i), Peer: alice}
		if err := Set(context.Background(), path, rule); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return 0
}
