package measure

// Weather is a network of the lab.
type Weather struct {
	Name  string
	Delay string // of each host, one way: a quarter of the round trip
	Loss  string
	Relay bool // NATs that only a relay gets through
}

// Weathers are those of the lab.
func Weathers() []Weather {
	return []Weather{
		{Name: "lab-20", Delay: "5ms", Loss: "0%"}, {Name: "lab-20-loss", Delay: "5ms", Loss: "1%"},
		{Name: "lab-100", Delay: "25ms", Loss: "0%"}, {Name: "lab-100-loss", Delay: "25ms", Loss: "1%"},
		{Name: "lab-relay", Delay: "5ms", Loss: "0%", Relay: true},
	}
}

// Topology is what `netlab up` is told.
func (w Weather) Topology() []string {
	if w.Relay {
		return []string{"nat", "--nat", "symmetric,symmetric", "--delay", w.Delay}
	}
	return []string{"wan", "--delay", w.Delay}
}
