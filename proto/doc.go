// Package proto is what p2ptun says: protocol names, the grammar of addresses
// and peers that people type, the ask messages and the reset codes. It is text
// and bytes only: no sockets, no goroutines, no state. Every room above calls
// it; it calls none of them. Every decoder here is bounded before it allocates
// and has a fuzzer beside it.
package proto
