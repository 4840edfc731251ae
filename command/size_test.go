package command

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"p2ptun/registry"
)

func TestRatesAreReadAsPeopleTypeThem(t *testing.T) {
	for typed, want := range map[string]int64{
		"1": 1, "1000000": 1_000_000, "100B": 100, "512k": 512_000, "512K": 512_000, "5M": 5_000_000, "5m": 5_000_000,
		"1.5MB": 1_500_000, ".5k": 500, "2G": 2_000_000_000, "2GB/s": 2_000_000_000, "5 MB/s": 5_000_000, "10/s": 10,
		"1KiB": 1 << 10, "1kiB": 1 << 10, "1MiB": 1 << 20, "1Mi": 1 << 20, "1.5GiB/s": 3 << 29, "1.0000009M": 1_000_000,
	} {
		if got, err := parseRate(typed); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", typed, got, err, want)
		}
	}
}

func TestWhatIsNoRateIsRefused(t *testing.T) {
	for _, typed := range []string{
		"", "0", "0.5", "0k", "-1", "-5M", "+5", "k", "B", "/s", "M5", "5MBit", "5Mb", "5b", "5iB", "5BB", "5kk", "5T", "5 5",
		"1,5M", "1e6", "0x10", "NaN", "Inf", "1.2.3", ".", "5MB/h", "5MB/s/s", "9223372036854775808", "9999999999G", "1_000", "٣",
		strings.Repeat("9", 400),
	} {
		if got, err := parseRate(typed); err == nil {
			t.Errorf("%q is read as %d", typed, got)
		}
	}
}

// limitsTyped gives the limits that flags of listen set.
func limitsTyped(t testing.TB, flags ...string) (tunnel registry.Tunnel, err error) {
	t.Helper()
	tl := &tool{Env: Env{Out: io.Discard, Err: io.Discard, Soft: context.Background(), Hard: context.Background()}}
	listen := tl.listenCommand()
	listen.Action = func(c *cli.Context) error { return setLimits(c, &tunnel) }
	app := &cli.App{Name: "p2ptun", Commands: []*cli.Command{listen}, Writer: io.Discard, ErrWriter: io.Discard, ExitErrHandler: func(*cli.Context, error) {}}
	err = app.Run(append(append([]string{"p2ptun", "listen"}, flags...), "--", "ssh", "22"))
	return tunnel, err
}

func TestEachLimitFlagSetsItsOwnLimit(t *testing.T) {
	got, err := limitsTyped(t, "--max-streams", "10", "--peer-max-streams=3", "--max-rate", "5MB/s", "--peer-max-rate", "512k")
	if err != nil || got.MaxStreams != 10 || got.PeerMaxStreams != 3 || got.MaxRate != 5_000_000 || got.PeerMaxRate != 512_000 {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := limitsTyped(t); err != nil || got.MaxStreams+got.PeerMaxStreams != 0 || got.MaxRate+got.PeerMaxRate != 0 {
		t.Errorf("without flags: %+v, %v", got, err)
	}
}

func TestALimitThatIsNoneIsWrongUseWithAnExample(t *testing.T) {
	for _, name := range []string{"max-streams", "peer-max-streams", "max-rate", "peer-max-rate"} {
		for _, value := range []string{"0", "-1", "", "many", "1.5x", "99999999999999999999"} {
			_, err := limitsTyped(t, "--"+name+"="+value)
			var e *exitError
			if !errors.As(err, &e) || e.code != exitUsage || !strings.HasPrefix(err.Error(), "flag --"+name+": ") {
				t.Errorf("--%s=%s: %v", name, value, err)
				continue
			}
			example := strings.Fields(e.hint)
			if _, err := limitsTyped(t, example...); example[0] != "--"+name || err != nil {
				t.Errorf("--%s=%s: the hint %q is no example: %v", name, value, e.hint, err)
			}
		}
	}
}
