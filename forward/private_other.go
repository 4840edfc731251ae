//go:build !unix

package forward

import "net"

// listenPrivate: on Windows the directory's rights hold for the socket.
func listenPrivate(path string) (net.Listener, error) { return net.Listen("unix", path) }
