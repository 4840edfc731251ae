// Package mux runs the streams of a libp2p connection: yamux as libp2p speaks
// it (/yamux/1.0.0; hashicorp/yamux, spec.md), in which whoever writes to a
// stream sends, and whoever reads one that has the connection to itself
// receives, without a hand-over between goroutines. It is not the trunk's yamux,
// whose streams outlive a connection. node gives it to libp2p.
package mux
