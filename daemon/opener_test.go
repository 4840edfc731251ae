package daemon

import (
	"testing"
	"time"
)

// TestTrunksEndAtOnce: one whose peer is silent keeps the others waiting for
// nothing.
func TestTrunksEndAtOnce(t *testing.T) {
	var o opener
	met := make(chan struct{})
	o.ends = []func(){func() { met <- struct{}{} }, func() { <-met }}
	closed := make(chan struct{})
	go func() { o.close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Fatal("one after the other")
	}
	o.close() // has nothing to do
}
