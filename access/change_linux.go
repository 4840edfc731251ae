package access

import (
	"io/fs"
	"syscall"
	"time"
)

// changeTime is the inode's: unlike the time of modification, nobody can set
// it back.
func changeTime(info fs.FileInfo) time.Time {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return time.Time{}
	}
	return time.Unix(st.Ctim.Unix())
}
