package access

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"go.uber.org/goleak"
)

// childVar makes the test binary do something else, as a process of its own:
// one of children, with the arguments that follow.
const childVar = "P2PTUN_TEST_CHILD"

var children = map[string]func(args []string) error{"set": setMany, "redeem": redeemAll}

func TestMain(m *testing.M) {
	if name := os.Getenv(childVar); name != "" {
		if err := children[name](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func childCommand(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), childVar+"="+name)
	return cmd
}

// setMany writes rules: PATH, NAME.
func setMany(args []string) error {
	for i := range perChild {
		rule := Rule{Allow: true, Protocol: "/x/" + args[1] + "-" + strconv.Itoa(i), Peer: alice}
		if err := Set(context.Background(), args[0], rule); err != nil {
			return err
		}
	}
	return nil
}
