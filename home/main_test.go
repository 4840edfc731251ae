package home

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// childVar makes the test binary play another process: what it does is the
// variable's first word, on the home or file that is its second.
const childVar = "P2PTUN_TEST_HOME_CHILD"

func TestMain(m *testing.M) {
	if play := os.Getenv(childVar); play != "" {
		what, path, _ := strings.Cut(play, " ")
		os.Exit(child(what, path))
	}
	goleak.VerifyTestMain(m)
}

func child(what, path string) int {
	switch what {
	case "hold":
		return childHolds(Dir(path))
	case "count":
		return childCounts(path)
	}
	return 2
}

// childHolds takes the lock, says so, and holds it until it is killed.
func childHolds(d Dir) int {
	_, ok, err := d.TryLock()
	fmt.Println("locked:", ok, err)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

const perChild = 50

// childCounts adds one to the number in a file, again and again.
func childCounts(path string) int {
	for range perChild {
		if err := increment(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return 0
}

func increment(path string) error {
	return Edit(context.Background(), path, func(old []byte) ([]byte, error) {
		n, _ := strconv.Atoi(string(old))
		return []byte(strconv.Itoa(n + 1)), nil
	})
}

func childCommand(what, path string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVar+"="+what+" "+path)
	return cmd
}
