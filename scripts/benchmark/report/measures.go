package report

// Measure is a column of a table.
type Measure struct {
	Name  string // in the results
	Title string
	Unit  string
	Lower bool // less is better
}

// Group is a table.
type Group struct {
	Title    string
	Measures []Measure
}

// Groups are the tables, in their order.
func Groups() []Group {
	return []Group{
		{"Goodput, MB/s", ways("goodput", "MB/s", false)},
		{"CPU-seconds per GiB, all processes of the tunnel", ways("cpu", "s/GiB", true)},
		{"Round trips of 64 B, ms", []Measure{
			{"ping-p50", "idle p50", "ms", true}, {"ping-p99", "idle p99", "ms", true},
			{"ping-bulk-p50", "beside 50 MB/s p50", "ms", true}, {"ping-bulk-p99", "beside 50 MB/s p99", "ms", true},
			{"ping-four-p50", "beside 4 downloads p50", "ms", true}, {"ping-four-p99", "beside 4 downloads p99", "ms", true},
		}},
		{"Connections and requests", []Measure{
			{"conns-1", "new connections/s, serial", "1/s", false}, {"conns-8", "new connections/s, 8 at once", "1/s", false}, {"conns-32", "new connections/s, 32 at once", "1/s", false},
			{"cpu-conns-8", "CPU ms per connection", "ms", true},
			{"requests-1", "16 KiB requests/s, 1 kept connection", "1/s", false}, {"requests-8", "16 KiB requests/s, 8 kept connections", "1/s", false},
		}},
		{"Memory: KiB of both nodes for one idle connection", []Measure{
			{"memory-1000", "at 1,000", "KiB", true}, {"memory-9000", "at 9,000", "KiB", true}, {"memory-10000", "at 10,000", "KiB", true},
		}},
		{"A node", []Measure{
			{"rss", "RSS idle, the larger node, MB", "MB", true}, {"ready-offer", "offering node ready, ms", "ms", true},
			{"ready-forward", "forwarding node ready, ms", "ms", true}, {"first-byte", "its start to first byte, ms", "ms", true},
			{"binary", "program, MB", "MB", true},
		}},
		{"Network lab, 40 Mbit/s: goodput down and up, Mbit/s", []Measure{
			{"lab-20-down", "20 ms down", "Mbit/s", false}, {"lab-20-up", "20 ms up", "Mbit/s", false},
			{"lab-20-loss-down", "20 ms, 1 % loss down", "Mbit/s", false}, {"lab-20-loss-up", "20 ms, 1 % loss up", "Mbit/s", false},
			{"lab-100-down", "100 ms down", "Mbit/s", false}, {"lab-100-up", "100 ms up", "Mbit/s", false},
			{"lab-100-loss-down", "100 ms, 1 % loss down", "Mbit/s", false}, {"lab-100-loss-up", "100 ms, 1 % loss up", "Mbit/s", false},
			{"lab-relay-down", "relay, 40 ms down", "Mbit/s", false}, {"lab-relay-up", "relay, 40 ms up", "Mbit/s", false},
		}},
	}
}

// ways are the six bulk transfers.
func ways(kind, unit string, lower bool) []Measure {
	return []Measure{
		{kind + "-up-1", "1 up", unit, lower}, {kind + "-down-1", "1 down", unit, lower}, {kind + "-both-1", "1 both ways", unit, lower},
		{kind + "-up-8", "8 up", unit, lower}, {kind + "-down-8", "8 down", unit, lower}, {kind + "-both-8", "8 both ways", unit, lower},
	}
}

// Lookup finds a measure by its name.
func Lookup(name string) (Measure, bool) {
	for _, g := range Groups() {
		for _, m := range g.Measures {
			if m.Name == name {
				return m, true
			}
		}
	}
	return Measure{}, false
}
