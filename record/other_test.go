//go:build !unix

package record

import "errors"

var errNothing = errors.ErrUnsupported

func readNow(uintptr, []byte) (int, error) { return 0, errors.New("not on this system") }
