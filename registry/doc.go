// Package registry knows everything that is alive: the tables of tunnels and
// of live streams, the pump that joins the two sides of a stream, the counters
// and the events. Nothing flows that is not in the registry. It opens no
// socket and dials nothing: forward and listen bring the two ends, daemon asks
// and closes.
package registry
