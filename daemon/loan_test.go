package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"p2ptun/access"
	"p2ptun/registry"
)

func TestLoansEndTogether(t *testing.T) {
	table := access.New(filepath.Join(t.TempDir(), "access"), func() {})
	r := &run{entry: &registry.Entry{Tunnel: registry.Tunnel{Protocol: "/x/a"}}}
	peers := []string{"one", "two"}
	for _, p := range append(peers, "one") { // twice is once
		if !r.lend(table, p) {
			t.Errorf("%s is not lent to", p)
		}
	}
	if got := r.lentPeers(); !slices.Equal(got, peers) {
		t.Errorf("lent to %v", got)
	}
	if !table.Allowed("one", "/x/a") || table.Allowed("one", "/x/b") || table.Allowed("three", "/x/a") {
		t.Error("lent other than asked")
	}
	r.loans.end()
	r.loans.end()
	for _, p := range peers {
		if table.Allowed(p, "/x/a") {
			t.Errorf("%s is still let in", p)
		}
	}
	if r.lend(table, "one") || table.Allowed("one", "/x/a") || len(r.lentPeers()) != 0 {
		t.Error("a tunnel that has ended lends")
	}
}

func TestLoansAreBounded(t *testing.T) {
	var l loans
	for i := range maxLent + 5 {
		if ok := l.add(fmt.Sprint(i), func() func() { return func() {} }); ok != (i < maxLent) {
			t.Fatalf("loan %d: %v", i, ok)
		}
	}
	if !l.add("0", nil) {
		t.Error("who is lent to already is refused")
	}
}

func TestLoanGivenWhileTheTunnelEndsDoesNotOutliveIt(t *testing.T) {
	table := access.New(filepath.Join(t.TempDir(), "access"), func() {})
	for range 200 {
		r := &run{entry: &registry.Entry{Tunnel: registry.Tunnel{Protocol: "/x/a"}}}
		var both sync.WaitGroup
		both.Go(func() { r.lend(table, "one") })
		both.Go(r.loans.end)
		both.Wait()
		if table.Allowed("one", "/x/a") {
			t.Fatal("still let in")
		}
	}
}

func TestLendingThroughTheSocketEndsWithItsTunnel(t *testing.T) {
	client, s := own(t, newHome(t))
	e, err := client.Keep(t.Context(), keeps("", "/x/a"))
	must(t, err)
	must(t, client.Lend(t.Context(), e.ID, "/x/a", somebody))
	a, err := client.Access(t.Context())
	must(t, err)
	if len(a.Rules) != 0 || len(a.Flags) != 1 || a.Flags[0] != (Flag{Protocol: "/x/a", Peer: somebody, Tunnel: e.ID}) {
		t.Errorf("access is %+v", a)
	}
	if !s.access.Allowed(somebody, "/x/a") {
		t.Error("not let in")
	}
	if _, err := client.Close(t.Context(), registry.Selector{IDs: []string{e.ID}}, time.Duration(0)); err != nil {
		t.Fatal(err)
	}
	if s.access.Allowed(somebody, "/x/a") {
		t.Error("let in though the tunnel has ended")
	}
	if err := client.Lend(t.Context(), e.ID, "/x/a", somebody); asError(err).Code != CodeNotFound {
		t.Errorf("lending to a tunnel that is gone: %v", err)
	}
}

func TestRightsAreThoseOfNow(t *testing.T) {
	const other, third = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo", "12D3KooWEChVMMMzV8acJ53mJHrw1pQ27UAGkCxWXLJutbeUMvVu"
	dir := newHome(t)
	client, server := own(t, dir)
	sub, err := registry.Subscribe[registry.AccessEvent](server.registry.Events, "test", 100)
	must(t, err)
	defer sub.Close()
	want := func(protocol string, rights ...Right) {
		t.Helper()
		if _, _, err := sub.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := client.Rights(t.Context(), protocol, []string{somebody, other, third})
		if is := []Right{got[somebody], got[other], got[third]}; err != nil || !slices.Equal(is, rights) {
			t.Errorf("%s: %v, %v; want %v", protocol, is, err, rights)
		}
	}
	must(t, client.SetRule(t.Context(), access.Rule{Allow: true, Protocol: "/x/a", Peer: somebody}))
	want("/x/a", RightAllowed, RightNone, RightNone)
	must(t, client.SetRule(t.Context(), access.Rule{Protocol: "/x/a", Peer: other}))
	want("/x/a", RightAllowed, RightDenied, RightNone)
	defer server.access.Lend("/x/a", []string{third}, false)()
	want("/x/a", RightAllowed, RightDenied, RightAllowed)
	must(t, os.WriteFile(dir.Access(), []byte("alow\n"), 0o600))
	server.access.Reload()
	want("/x/a", RightNone, RightNone, RightNone)
	if _, err := client.Rights(t.Context(), "/x/a", nil); asError(err).Code != CodeUsage {
		t.Errorf("of nobody: %v", err)
	}
}
