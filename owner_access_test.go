//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"p2ptun/daemon"
)

// Who may what, over the control API.

// wantRequests makes requests in turn: method, path and body, and then the
// status and a piece of the answer that are wanted.
func wantRequests(t testing.TB, n *node, requests [][5]string) {
	t.Helper()
	c := overSocket(n)
	for _, r := range requests {
		code, body := request(t, c, r[0], r[1], r[2])
		if fmt.Sprint(code) != r[3] || !strings.Contains(body, r[4]) {
			t.Errorf("%s %s %.200s: %d %s, want %s %s", r[0], r[1], r[2], code, body, r[3], r[4])
		}
	}
}

func TestAPIRefusesInvitesThatCanNotBeMeant(t *testing.T) {
	n := newNode(t)
	startDaemon(n)
	wantRequests(t, n, [][5]string{
		{"POST", "/invites", ``, "400", "usage"},
		{"POST", "/invites", `invite`, "400", "usage"},
		{"POST", "/invites", `{}`, "400", "usage"},
		{"POST", "/invites", `{"protocol":"/x/a","x":1}`, "400", "unknown field"},
		{"POST", "/invites", `{"protocol":"/x/a"}{}`, "400", "more than one"},
		{"POST", "/invites", `{"protocol":"/x/a","comment":"` + strings.Repeat("x", 1<<20) + `"}`, "400", "usage"},
		{"POST", "/invites", `{"protocol":"/x/a","comment":"` + strings.Repeat("x", 5000) + `"}`, "400", ""},
		{"POST", "/invites", `{"protocol":"/x/a","comment":"a\nallow /x/a ` + n.id + `"}`, "400", "one line"},
		{"POST", "/invites", `{"protocol":"/x/a","uses":-1}`, "400", "1 to 1000"},
		{"POST", "/invites", `{"protocol":"/x/a","uses":1001}`, "400", "1 to 1000"},
		{"POST", "/invites", `{"protocol":"/x/a","for":"-1h"}`, "400", "negative"},
		{"POST", "/invites", `{"protocol":"/x/a","for":"1ms"}`, "400", "a second"},
		{"POST", "/invites", `{"protocol":"/x/a b"}`, "400", "usage"},
		{"POST", "/invites", `{"protocol":"/p2ptun/ask/1.0.0"}`, "400", "usage"},
		{"DELETE", "/invites", ``, "404", "no-invite"},
		{"DELETE", "/invites?id=aaaaaaaa", ``, "404", "no-invite"},
		{"DELETE", "/invites?id=%1b%5b2J", ``, "404", "no-invite"},
		{"GET", "/invites", ``, "405", ""},
	})
	if left := n.run("access", "ls"); left != "" {
		t.Errorf("access ls says %q", left)
	}
}

func TestAPIMakesAndRevokesInvites(t *testing.T) {
	n := newNode(t)
	startDaemon(n)
	c := overSocket(n)
	code, body := request(t, c, "POST", "/invites", `{"protocol":"/x/a","uses":3,"for":"2h","comment":"for a friend"}`)
	var made daemon.InviteReply
	if err := json.Unmarshal([]byte(body), &made); code != 200 || err != nil || made.Uses != 3 || made.Addrs != 1 {
		t.Fatalf("%d %s, %v", code, body, err)
	}
	code, body = request(t, c, "GET", "/access", "")
	if code != 200 || !strings.Contains(body, made.ID) || !strings.Contains(body, "for a friend") || strings.Contains(body, made.Text) {
		t.Errorf("GET /access: %d %s", code, body)
	}
	secretOf(t, made.Text).wantNotUnder(t, n.home)
	wantRequests(t, n, [][5]string{
		{"DELETE", "/invites?id=" + made.ID, "", "200", ""},
		{"DELETE", "/invites?id=" + made.ID, "", "404", "no-invite"},
	})
}

func TestAPIChangesGroups(t *testing.T) {
	n, friend, other := newNode(t), newNode(t), newNode(t)
	startDaemon(n)
	peers := func(name string, ids ...string) string {
		return marshal(t, daemon.GroupRequest{Name: name, Peers: ids})
	}
	out := func(name string, ids ...string) string {
		return marshal(t, daemon.GroupRequest{Name: name, Peers: ids, Remove: true})
	}
	rule := `{"allow":true,"protocol":"/x/a","peer":"@family"}`
	wantRequests(t, n, [][5]string{
		{"POST", "/groups", `{"name":`, "400", "usage"},
		{"POST", "/groups", peers("family"), "400", "no peer"},
		{"POST", "/groups", peers("", friend.id), "400", "not the name of a group"},
		{"POST", "/groups", peers("1st", friend.id), "400", "not the name of a group"},
		{"POST", "/groups", peers("family", "everybody"), "400", "peer IDs"},
		{"POST", "/groups", out("family"), "404", "no-group"},
		{"POST", "/groups", out("family", friend.id), "404", "no-group"},
		{"POST", "/access", rule, "404", "no-group"},
		{"POST", "/groups", peers("family", "/p2p/"+friend.id), "200", ""},
		{"POST", "/groups", out("family", other.id), "404", "no-group"},
		{"POST", "/access", rule, "200", ""},
		{"POST", "/groups", out("family"), "500", "a rule is about the group"},
		{"GET", "/access", "", "200", `{"name":"family","peers":["` + friend.id + `"]}`},
	})
}

func TestAPILendsToListeningTunnelsAlone(t *testing.T) {
	service, client := newNode(t), newNode(t)
	l := startListen(service, overTCP, testProtocol, serve(t, echoBack).addr())
	back := service.start("forward", "--wait", "/x/back", "/p2p/"+client.id)
	back.waitFor(t, &back.out, `forwarding .*`)
	lend := func(more string) string {
		return `{"allow":true,"protocol":"` + testProtocol + `","peer":"` + client.id + `"` + more + `}`
	}
	wantRequests(t, service, [][5]string{
		{"POST", "/access", lend(`,"tunnel":"99"`), "404", "no listening tunnel 99"},
		{"POST", "/access", lend(`,"tunnel":"2"`), "404", "no listening tunnel 2"},
		{"POST", "/access", strings.Replace(lend(`,"tunnel":"1"`), testProtocol, "/x/other", 1), "404", "no listening tunnel 1 of /x/other"},
		{"POST", "/access", strings.Replace(lend(`,"tunnel":"1"`), "true", "false", 1), "400", "one peer may be let in"},
		{"POST", "/access", lend(`,"tunnel":"1","until":"2099-01-01T00:00:00Z"`), "400", "one peer may be let in"},
		{"POST", "/access", lend(`,"tunnel":"1","max_streams":3`), "400", "one peer may be let in"},
		{"POST", "/access", strings.Replace(lend(`,"tunnel":"1"`), client.id, "@family", 1), "400", "one peer may be let in"},
		{"POST", "/access", lend(`,"max_streams":-1`), "400", "more than 0"},
		{"POST", "/access", strings.Replace(lend(`,"max_rate":5`), "true", "false", 1), "400", "for an allow"},
	})
	isRefused(client, l.addr)
	wantRequests(t, service, [][5]string{{"POST", "/access", lend(`,"tunnel":"1"`), "200", client.id}})
	wantOneEcho(t, startForward(client, testProtocol, l.addr))
}

func TestGroupLetsItsPeersInAndOutAtOnce(t *testing.T) {
	s, _ := pushing(t)
	service, client := newNode(t), newNode(t)
	l := startListen(service, overTCP, testProtocol, s.addr())
	service.run("access", "group", "add", "family", client.id)
	isRefused(client, l.addr)
	service.run("allow", testProtocol, "@family")
	f := startForward(client, testProtocol, l.addr)
	tr := startTransfer(t, f)
	service.run("access", "group", "rm", "family", client.id)
	tr.wantReset(t)
	service.run("access", "group", "add", "family", client.id)
	await(t, "it is let in again", func() bool { return pushes(f) })
	tr = startTransfer(t, f)
	service.run("deny", testProtocol, "@family")
	tr.wantReset(t)
}

func TestLimitsOfARuleHoldForItsPeer(t *testing.T) {
	service, client := newNode(t), newNode(t)
	l := startListen(service, overTCP, testProtocol, serve(t, echoBack).addr())
	service.run("allow", testProtocol, client.id, "--max-streams", "2", "--max-rate", "1M")
	if rows := service.grants("allow"); len(rows) != 1 || !strings.Contains(rows[0], "at most 2 connections") || !strings.Contains(rows[0], "/s") {
		t.Errorf("access ls says %q", rows)
	}
	f := startForward(client, testProtocol, l.addr)
	for range 2 {
		wantEcho(t, f.dial(t), "held")
	}
	wantResetAtOnce(t, f)
	f.saysOnStderr(t, "too many connections")
	service.run("allow", testProtocol, client.id) // without limits
	await(t, "more are carried", func() bool { return echoes(f) })
}
