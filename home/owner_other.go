//go:build !unix

package home

import "io/fs"

func ownedByUs(fs.FileInfo) bool { return true }

// syncDir: Windows writes a rename's metadata through its journal.
func syncDir(string) error { return nil }
