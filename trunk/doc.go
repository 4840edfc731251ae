// Package trunk makes streams that outlive their link: hashicorp/yamux over a
// byte pipe that resumes where it was cut, over links that come and go. It
// knows no libp2p and no tunnel: daemon gives it links, and asks who may. What
// crosses a link is described in docs/protocol.md.
package trunk
