package command

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"p2ptun/proto"
)

// units of bytes: k, M and G are powers of 1000, Ki, Mi and Gi of 1024.
var units = map[string]float64{
	"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30,
}

// parseRate reads bytes a second, at least one: 1000000, 512k, 5M, 1.5MB,
// 1MiB, each with or without /s. A small b would be bits and is refused, as is
// a comma, which is a point to some and nothing to others.
func parseRate(s string) (int64, error) {
	bad := fmt.Errorf("%s is not a number of bytes a second", proto.ShellQuote(s))
	text := strings.TrimSuffix(s, "/s")
	number := strings.TrimRight(text, " kKmMgGiB")
	unit := strings.TrimSpace(text[len(number):])
	factor, known := units[strings.ToLower(strings.TrimSuffix(unit, "B"))]
	if !known || strings.Trim(number, "0123456789.") != "" {
		return 0, bad
	}
	value, err := strconv.ParseFloat(number, 64)
	if err != nil || value*factor >= math.MaxInt64 {
		return 0, bad
	}
	if value*factor < 1 {
		return 0, fmt.Errorf("%s is less than a byte a second", proto.ShellQuote(s))
	}
	return int64(value * factor), nil
}

// rateFlag is the value of a flag that is a rate; 0 where it is not given.
func rateFlag(c *cli.Context, name string) (int64, error) {
	if !c.IsSet(name) {
		return 0, nil
	}
	rate, err := parseRate(c.String(name))
	if err != nil {
		return 0, usageHint(fmt.Sprintf("flag --%s: %v", name, err), "--"+name+" 5MB/s")
	}
	return rate, nil
}

// countFlag is the value of a flag that is a number above 0; 0 where it is not
// given.
func countFlag(c *cli.Context, name string) (int, error) {
	if !c.IsSet(name) {
		return 0, nil
	}
	n, err := strconv.ParseUint(c.String(name), 10, 31)
	if err != nil || n == 0 {
		return 0, usageHint(fmt.Sprintf("flag --%s: %s is not a number above 0", name, proto.ShellQuote(c.String(name))), "--"+name+" 100")
	}
	return int(n), nil
}
