//go:build !unix

package command

// ignoreTTIN has nothing to do: only unix stops who reads from the background.
func ignoreTTIN() {}
