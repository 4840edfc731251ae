package trunk

import "sync/atomic"

// Budget bounds memory, in bytes: what peers were told they may send and have
// sent unread, and what is kept until they acknowledge it beyond the least of
// each trunk. The zero value has room for nothing; nil has no bound.
type Budget struct {
	whole *Budget // that this is a part of
	max   int64
	used  atomic.Int64
}

// NewBudget makes one of so many bytes.
func NewBudget(max int64) *Budget { return &Budget{max: max} }

const (
	// DefaultBudget is for one process.
	DefaultBudget = 256 << 20
	// trunkBudget bounds what one trunk takes of it.
	trunkBudget = 192 << 20
)

// Parts of the budget: a stream gets its first window while so much is used by
// all, and one may grow while so much is. What is left is for the least of each
// stream: 20,000 on one trunk.
const (
	budgetForStart = 0.25
	budgetForAll   = 0.55
)

// part makes a budget whose bytes are also taken of b.
func (b *Budget) part(max int64) *Budget { return &Budget{whole: b, max: max} }

// take reserves n bytes, if no more than that fraction of the budget is used
// then.
func (b *Budget) take(n int64, fraction float64) bool {
	if b == nil {
		return true
	}
	if float64(b.used.Add(n)) <= float64(b.max)*fraction && b.whole.take(n, fraction) {
		return true
	}
	b.used.Add(-n)
	return false
}

func (b *Budget) give(n int64) {
	for ; b != nil; b = b.whole {
		b.used.Add(-n)
	}
}

// Used is what is reserved now.
func (b *Budget) Used() int64 { return b.used.Load() }

// Max is what may be.
func (b *Budget) Max() int64 { return b.max }

// scarce says that idle streams are to give back all that they can.
func (b *Budget) scarce() bool {
	for ; b != nil; b = b.whole {
		if float64(b.used.Load()) > float64(b.max)*budgetForStart {
			return true
		}
	}
	return false
}
