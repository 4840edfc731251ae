package trunk

import "sync/atomic"

// Budget bounds what peers may have sent to this process that was not read
// yet, in bytes, over all trunks: the sum of what they were told they may send.
// The zero value allows nothing beyond the least for each stream.
type Budget struct {
	max  int64
	used atomic.Int64
}

// NewBudget makes one of so many bytes.
func NewBudget(max int64) *Budget { return &Budget{max: max} }

// DefaultBudget is for one process.
const DefaultBudget = 256 << 20

// take reserves n bytes, if no more than part of the budget is used then.
func (b *Budget) take(n int64, part float64) bool {
	if float64(b.used.Add(n)) <= float64(b.max)*part {
		return true
	}
	b.used.Add(-n)
	return false
}

// force reserves n bytes whatever is left, where there is any.
func (b *Budget) force(n int64) bool { return b.take(n, 1) }

func (b *Budget) give(n int64) { b.used.Add(-n) }

// Used is what is reserved now.
func (b *Budget) Used() int64 { return b.used.Load() }
