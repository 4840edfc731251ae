package home

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

const (
	aliceID = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"
	bobAddr = "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWEChVMMMzV8acJ53mJHrw1pQ27UAGkCxWXLJutbeUMvVu"
)

func setName(t testing.TB, d Dir, name string, addrs ...string) {
	t.Helper()
	if err := d.SetName(t.Context(), NamedPeer{name, addrs}); err != nil {
		t.Fatal(err)
	}
}

func TestTheBookKeepsNamesSorted(t *testing.T) {
	d := Dir(t.TempDir())
	setName(t, d, "zoe", aliceID)
	setName(t, d, "alice", aliceID, bobAddr)
	setName(t, d, "bob", bobAddr)
	setName(t, d, "zoe", bobAddr) // replaced
	book, err := d.Names()
	if err != nil {
		t.Fatal(err)
	}
	want := []NamedPeer{{"alice", []string{aliceID, bobAddr}}, {"bob", []string{bobAddr}}, {"zoe", []string{bobAddr}}}
	if fmt.Sprint(book) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", book, want)
	}
	if m := mode(t, d.Peers()); m != 0o600 {
		t.Errorf("mode %v", m)
	}
}

func TestFindAndRemoveAName(t *testing.T) {
	d := Dir(t.TempDir())
	if _, err := d.FindName("alice"); !errors.Is(err, ErrNoPeer) {
		t.Errorf("in no book: %v", err)
	}
	setName(t, d, "alice", aliceID)
	if got, err := d.FindName("alice"); err != nil || !slices.Equal(got, []string{aliceID}) {
		t.Errorf("%v, %v", got, err)
	}
	if err := d.RemoveName(t.Context(), "alice"); err != nil {
		t.Error(err)
	}
	if err := d.RemoveName(t.Context(), "alice"); !errors.Is(err, ErrNoPeer) {
		t.Errorf("a second time: %v", err)
	}
}

func TestABrokenBookIsAnErrorAndIsNotTouched(t *testing.T) {
	for name, line := range map[string]string{
		"no address":   "alice",
		"bad name":     "al!ce " + aliceID,
		"a name again": "alice bob",
		"no peer ID":   "alice /ip4/192.0.2.1/tcp/4001",
	} {
		t.Run(name, func(t *testing.T) {
			d := Dir(t.TempDir())
			content := "# friends\n" + line + "\n"
			if err := os.WriteFile(d.Peers(), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if book, err := d.Names(); err == nil || !strings.Contains(err.Error(), "line 2") {
				t.Errorf("read %v, %v", book, err)
			}
			if err := d.SetName(t.Context(), NamedPeer{"zoe", []string{aliceID}}); err == nil {
				t.Error("written")
			}
			wantContent(t, d.Peers(), content)
		})
	}
}

func TestABadNameIsNotWritten(t *testing.T) {
	d := Dir(t.TempDir())
	setName(t, d, "alice", aliceID)
	for _, p := range []NamedPeer{{"", []string{aliceID}}, {"a b", []string{aliceID}}, {"x\ny", []string{aliceID}}, {"zoe", nil}, {"zoe", []string{"bob"}}, {"zoe", []string{aliceID + "\nbob " + aliceID}}} {
		if err := d.SetName(t.Context(), p); err == nil {
			t.Errorf("%q was taken", p)
		}
	}
	if book, err := d.Names(); err != nil || len(book) != 1 {
		t.Errorf("the book became %v, %v", book, err)
	}
}

func TestCommentsOfTheBookAreKept(t *testing.T) {
	d := Dir(t.TempDir())
	if err := os.WriteFile(d.Peers(), []byte("# friends\nbob "+bobAddr+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	setName(t, d, "alice", aliceID)
	data, err := ReadFile(d.Peers())
	if err != nil || !strings.Contains(string(data), "# friends\n") {
		t.Errorf("the book became:\n%s", data)
	}
}

func TestConcurrentNamesAreAllKept(t *testing.T) {
	d := Dir(t.TempDir())
	var all sync.WaitGroup
	const writers = 30
	for i := range writers {
		all.Go(func() {
			if err := d.SetName(t.Context(), NamedPeer{fmt.Sprintf("peer%d", i), []string{aliceID}}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if book, err := d.Names(); err != nil || len(book) != writers {
		t.Errorf("%d names, %v", len(book), err)
	}
}
