package main

import (
	"fmt"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

// programs are what this test binary is when it is run by one of these names,
// which TestMain puts first in $PATH: the real main, and the programs that end
// to end tests need on either side of it.
var programs = map[string]func(){"p2ptun": main}

func TestMain(m *testing.M) { testscript.Main(leakChecked{m}, programs) }

// leakChecked fails a run whose tests all pass but leave goroutines behind.
type leakChecked struct{ testscript.TestingM }

func (l leakChecked) Run() int {
	code := l.TestingM.Run()
	if code != 0 {
		return code
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
