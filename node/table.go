package node

import "container/list"

// table is a map with a bound: where there is no room, an entry that is spare
// goes, else the one that was used longest ago. It locks nothing.
type table[K comparable, V any] struct {
	most  int
	items map[K]*list.Element
	order *list.List // of entry[K, V], the last used first
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

// spareLook is how many of the oldest entries are looked at for a spare one.
const spareLook = 16

func newTable[K comparable, V any](most int) *table[K, V] {
	return &table[K, V]{most: most, items: map[K]*list.Element{}, order: list.New()}
}

// get gives an entry and counts as its use.
func (t *table[K, V]) get(key K) (value V, ok bool) {
	e, ok := t.items[key]
	if !ok {
		return value, false
	}
	t.order.MoveToFront(e)
	return e.Value.(entry[K, V]).value, true
}

// put sets an entry. spare says which entries are worth nothing any more.
func (t *table[K, V]) put(key K, value V, spare func(V) bool) {
	if e, ok := t.items[key]; ok {
		e.Value = entry[K, V]{key, value}
		t.order.MoveToFront(e)
		return
	}
	if len(t.items) >= t.most {
		t.drop(t.leastWorth(spare))
	}
	t.items[key] = t.order.PushFront(entry[K, V]{key, value})
}

func (t *table[K, V]) leastWorth(spare func(V) bool) *list.Element {
	e := t.order.Back()
	for range spareLook {
		if e == nil {
			break
		}
		if spare(e.Value.(entry[K, V]).value) {
			return e
		}
		e = e.Prev()
	}
	return t.order.Back()
}

func (t *table[K, V]) delete(key K) {
	if e, ok := t.items[key]; ok {
		t.drop(e)
	}
}

func (t *table[K, V]) drop(e *list.Element) {
	delete(t.items, e.Value.(entry[K, V]).key)
	t.order.Remove(e)
}
