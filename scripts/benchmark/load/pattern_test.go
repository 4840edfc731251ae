package load

import (
	"slices"
	"testing"
)

func TestThePatternIsTakenHoweverItIsCut(t *testing.T) {
	for _, cut := range []int{1, 7, 4095, 4096, 100_000} {
		s, c := newSource(), checker{}
		for left := int64(3*blockSize + 11); left > 0; {
			b := s.next(left)
			left -= int64(len(b))
			for part := range slices.Chunk(b, cut) {
				if err := c.take(part); err != nil {
					t.Fatalf("cut %d: %v", cut, err)
				}
			}
		}
	}
}

func TestBytesThatAreLostOrMovedAreSeen(t *testing.T) {
	s := newSource()
	one := slices.Clone(s.next(blockSize))
	two := slices.Clone(s.next(blockSize))
	for name, sent := range map[string][][]byte{
		"a block twice": {one, one},
		"order":         {two, one},
		"a byte lost":   {one[1:], two},
	} {
		var c checker
		err := error(nil)
		for _, b := range sent {
			if err == nil {
				err = c.take(b)
			}
		}
		if err == nil {
			t.Errorf("%s: not seen", name)
		}
	}
}
