// Package record is the record layer of TLS 1.3 (RFC 8446, 5) for a connection
// over which crypto/tls has shaken hands. crypto/tls copies each byte twice on
// both sides, and makes a system call for each record; here the records of a
// message go out together, and what one system call has brought is decrypted to
// where it is wanted. The bytes on the wire are those of TLS.
package record
