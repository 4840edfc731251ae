// Package node is this machine's libp2p host: identity key, listening
// addresses, discovery on the LAN, resource limits, and the way to a peer. It
// opens streams and hands incoming ones on; what they carry and who may open
// them it does not know: listen and access do. Only daemon calls it.
package node
