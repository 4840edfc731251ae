package access

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"p2ptun/proto"
)

func tablesOn(path string, n int) []*Table {
	tables := make([]*Table, n)
	for i := range tables {
		tables[i] = New(path, func() {})
	}
	return tables
}

// race lets many peers redeem an invite at once, through several tables, and
// gives those that were let in.
func race(t testing.TB, tables []*Table, i proto.Invite, peers int) (in []string) {
	t.Helper()
	var all sync.WaitGroup
	var mu sync.Mutex
	start := make(chan struct{})
	for n := range peers {
		all.Go(func() {
			<-start
			_, fresh, err := redeem(tables[n%len(tables)], peerN(n), i)
			switch {
			case err == nil && fresh:
				mu.Lock()
				in = append(in, peerN(n))
				mu.Unlock()
			case !errors.Is(err, ErrInviteUsed):
				t.Errorf("peer %d: fresh %v, %v", n, fresh, err)
			}
		})
	}
	close(start)
	all.Wait()
	return in
}

func TestOfAHundredPeersAtOnceAsManyGetInAsThereAreUses(t *testing.T) {
	for _, c := range []struct{ tables, uses int }{{1, 1}, {1, 7}, {4, 1}, {4, 7}} {
		t.Run(fmt.Sprintf("%d tables, %d uses", c.tables, c.uses), func(t *testing.T) {
			path := file(t, "# mine\n")
			i := invite(t, path, "/x/ssh", c.uses)
			tables := tablesOn(path, c.tables)
			in := race(t, tables, i, 100)
			said, err := List(path)
			if err != nil || len(in) != c.uses {
				t.Fatalf("%d got in, %v", len(in), err)
			}
			slices.Sort(in)
			if used := slices.Sorted(slices.Values(said.Invites[0].Used)); !slices.Equal(used, in) {
				t.Errorf("used by %v, in are %v", used, in)
			}
			for _, table := range tables {
				table.Reload()
				if n, _ := table.Peers("/x/ssh"); n != c.uses {
					t.Errorf("%d are let in", n)
				}
			}
		})
	}
}

// The winner's retries and its first try are one use.
func TestOnePeersTriesAtOnceAreOneUse(t *testing.T) {
	path := file(t, "")
	i := invite(t, path, "/x/ssh", 1)
	tables := tablesOn(path, 2)
	var all sync.WaitGroup
	var fresh atomic.Int64
	for n := range 40 {
		all.Go(func() {
			_, isFresh, err := redeem(tables[n%2], alice, i)
			if err != nil {
				t.Error(err)
			}
			if isFresh {
				fresh.Add(1)
			}
		})
	}
	all.Wait()
	if n := strings.Count(contentOf(t, path), "\nused "); n != 1 || fresh.Load() != 1 {
		t.Errorf("%d uses, %d fresh", n, fresh.Load())
	}
}

// redeemAll redeems an invite for many peers, and says each that has got an
// answer: PATH, ID, SECRET, FROM, TO.
func redeemAll(args []string) error {
	secret, err := base64.RawURLEncoding.DecodeString(args[2])
	if err != nil {
		return err
	}
	from, _ := strconv.Atoi(args[3])
	to, _ := strconv.Atoi(args[4])
	table := New(args[0], func() {})
	for n := from; n < to; n++ {
		_, _, err := redeem(table, peerN(n), proto.Invite{ID: args[1], Protocol: "/x/ssh", Secret: secret})
		if errors.Is(err, ErrInviteUsed) {
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Println(n) // unbuffered: the answer is out
	}
	return nil
}

// killed runs redeemAll, kills it after some answers and a moment, and gives
// the answers. An end without a kill is none.
func killed(t testing.TB, path string, i proto.Invite, from int, answers int, moment time.Duration) (peers []string) {
	t.Helper()
	cmd := childCommand("redeem", path, i.ID, base64.RawURLEncoding.EncodeToString(i.Secret), strconv.Itoa(from), strconv.Itoa(from+MaxUses))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { _ = cmd.Process.Kill() }
	for lines := bufio.NewScanner(out); lines.Scan(); {
		n, err := strconv.Atoi(lines.Text())
		if err != nil {
			t.Errorf("the child says %q", lines.Text())
			break
		}
		if peers = append(peers, peerN(n)); len(peers) == answers {
			defer time.AfterFunc(moment, kill).Stop()
		}
	}
	_ = cmd.Wait()
	return peers
}

func TestAUseIsOnDiskBeforeItsAnswerGoesOutWhateverIsKilled(t *testing.T) {
	const uses, runs = 150, 12
	path := file(t, "# mine\n")
	i := invite(t, path, "/x/ssh", uses)
	var answered []string
	for run := range runs {
		moment := time.Duration(rand.Int64N(int64(15 * time.Millisecond)))
		answered = append(answered, killed(t, path, i, run*MaxUses, 1+rand.IntN(4), moment)...)
		checkUses(t, path, uses, answered)
	}
	answered = append(answered, killed(t, path, i, runs*MaxUses, uses+1, 0)...) // to its end
	checkUses(t, path, uses, answered)
	if said, err := List(path); err != nil || said.Invites[0].Left() != 0 || len(answered) <= runs {
		t.Errorf("%d answers, %d uses left, %v", len(answered), said.Invites[0].Left(), err)
	}
}

func checkUses(t testing.TB, path string, uses int, answered []string) {
	t.Helper()
	said, err := List(path)
	if err != nil || len(said.Invites) != 1 || !strings.HasPrefix(contentOf(t, path), "# mine\n") {
		t.Fatalf("%v, %v", said, err)
	}
	used := said.Invites[0].Used
	if len(used) > uses || len(used) < len(answered) {
		t.Errorf("%d uses on disk, %d answers, %d at most", len(used), len(answered), uses)
	}
	for _, peer := range answered {
		if !slices.Contains(used, peer) {
			t.Errorf("the use of %s is lost", peer)
		}
	}
}

func TestUsesByTwoProcessesAtOnceAreNotMoreThanThereAre(t *testing.T) {
	const uses = 30
	path := file(t, "# mine\n")
	i := invite(t, path, "/x/ssh", uses)
	var all sync.WaitGroup
	var mu sync.Mutex
	var answered []string
	for child := range 2 {
		all.Go(func() {
			peers := killed(t, path, i, child*MaxUses, uses+1, 0)
			mu.Lock()
			defer mu.Unlock()
			answered = append(answered, peers...)
		})
	}
	all.Wait()
	checkUses(t, path, uses, answered)
	if len(answered) != uses {
		t.Errorf("%d answers", len(answered))
	}
}

func TestChangesBesideRedemptionsLoseNothing(t *testing.T) {
	const each = 15
	ctx := context.Background()
	path := file(t, "# mine\n")
	i := invite(t, path, "/x/ssh", each)
	table := New(path, func() {})
	var all sync.WaitGroup
	for n := range each {
		for _, change := range []func() error{
			func() error { _, _, err := redeem(table, peerN(n), i); return err },
			func() error { return Set(ctx, path, Rule{Protocol: "/x/" + strconv.Itoa(n), Peer: alice}) },
			func() error { return AddToGroup(ctx, path, "g", []string{peerN(n)}) },
			func() error {
				_, err := AddInvite(ctx, path, keysOf("/x/web"), 1, time.Now().Add(time.Hour), "")
				return err
			},
		} {
			all.Go(func() {
				if err := change(); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	said, err := List(path)
	if err != nil || len(said.Rules) != each || len(said.Invites) != each+1 || len(said.Groups) != 1 || len(said.Groups[0].Peers) != each || len(said.Invites[0].Used) != each {
		t.Errorf("%d rules, %d invites, %d uses, %v", len(said.Rules), len(said.Invites), len(said.Invites[0].Used), err)
	}
}

// An editor knows no lock. What it saves between two redemptions stays, and so
// do the uses before it.
func TestWhatAPersonWritesBetweenRedemptionsStays(t *testing.T) {
	const turns = 10
	r := newRig(t, "# mine\n")
	i := invite(t, r.path, "/x/ssh", turns)
	r.Reload()
	for n := range turns {
		write(t, r.path, fmt.Sprintf("# %d\n", n)+contentOf(t, r.path)+"allow web "+peerN(n)+" # by hand\n")
		wantRedeemed(t, r.Table, peerN(n), i, true)
	}
	text := contentOf(t, r.path)
	if strings.Count(text, "# by hand\n") != turns || strings.Count(text, "\nused ") != turns || !strings.Contains(text, "# 1\n# 0\n# mine\n") {
		t.Errorf("the file is:\n%s", text)
	}
	for n := range turns {
		r.want(t, peerN(n), "/x/web", true)
	}
}
