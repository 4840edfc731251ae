package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"p2ptun/access"
	"p2ptun/registry"
)

// ErrOwnerGone is returned by Open when the owner ended without a word, or
// hands over: the tunnel may be opened again elsewhere.
var ErrOwnerGone = errors.New("the node's owner has ended")

// Client speaks to the owner of a home over its control socket.
type Client struct {
	http http.Client
}

// NewClient makes a client of the socket at path; nothing is dialled yet.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	return &Client{http: http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status asks how the node is.
func (c *Client) Status(ctx context.Context) (st Status, err error) {
	return st, c.call(ctx, "GET", "/status", nil, &st)
}

// Tunnels lists the tunnels.
func (c *Client) Tunnels(ctx context.Context) (list []registry.TunnelStatus, err error) {
	return list, c.call(ctx, "GET", "/tunnels", nil, &list)
}

// Close closes the tunnels that sel selects and lists them. Live streams may
// finish for as long as drain; without, it returns when the tunnels have ended.
func (c *Client) Close(ctx context.Context, sel registry.Selector, drain time.Duration) (closed []registry.TunnelStatus, err error) {
	q := url.Values{"id": sel.IDs}
	for key, value := range map[string]string{"protocol": sel.Protocol, "bind": sel.Bind, "target": sel.Target} {
		if value != "" {
			q.Set(key, value)
		}
	}
	if sel.All {
		q.Set("all", "true")
	}
	if drain > 0 {
		q.Set("drain", drain.String())
	}
	return closed, c.call(ctx, "DELETE", "/tunnels?"+q.Encode(), nil, &closed)
}

// Streams lists the live streams.
func (c *Client) Streams(ctx context.Context) (list []registry.StreamStatus, err error) {
	return list, c.call(ctx, "GET", "/streams", nil, &list)
}

// CloseStreams resets streams and says how many.
func (c *Client) CloseStreams(ctx context.Context, ids []string, all bool) (n int, err error) {
	q := url.Values{"id": ids}
	if all {
		q.Set("all", "true")
	}
	var got struct {
		Closed int `json:"closed"`
	}
	err = c.call(ctx, "DELETE", "/streams?"+q.Encode(), nil, &got)
	return got.Closed, err
}

// Access lists the rules.
func (c *Client) Access(ctx context.Context) (a Access, err error) {
	return a, c.call(ctx, "GET", "/access", nil, &a)
}

// Rights asks what peers, by ID, may: at most 100 of them.
func (c *Client) Rights(ctx context.Context, protocol string, peers []string) (rights map[string]Right, err error) {
	q := url.Values{"protocol": {protocol}, "peer": peers}
	return rights, c.call(ctx, "GET", "/rights?"+q.Encode(), nil, &rights)
}

// SetRule puts a rule into the access file, where it takes effect at once.
func (c *Client) SetRule(ctx context.Context, rule access.Rule) error {
	return c.call(ctx, "POST", "/access", rule, nil)
}

// Lend lets a peer use a protocol for as long as a listening tunnel lives.
func (c *Client) Lend(ctx context.Context, tunnel, protocol, peer string) error {
	rule := access.Rule{Allow: true, Protocol: protocol, Peer: peer}
	return c.call(ctx, "POST", "/access", AccessRequest{Rule: rule, Tunnel: tunnel}, nil)
}

// Invite makes an invite to this node.
func (c *Client) Invite(ctx context.Context, req InviteRequest) (made InviteReply, err error) {
	return made, c.call(ctx, "POST", "/invites", req, &made)
}

// RevokeInvite ends an invite, and what those may who have redeemed it.
func (c *Client) RevokeInvite(ctx context.Context, id string) error {
	return c.call(ctx, "DELETE", "/invites?"+url.Values{"id": {id}}.Encode(), nil, nil)
}

// SetGroup changes a group of peers.
func (c *Client) SetGroup(ctx context.Context, req GroupRequest) error {
	return c.call(ctx, "POST", "/groups", req, nil)
}

// Ping reaches one of the peers and measures a round trip.
func (c *Client) Ping(ctx context.Context, peers []string) (r PingReply, err error) {
	return r, c.call(ctx, "POST", "/ping", PingRequest{Peers: peers}, &r)
}

// Reload has the owner reread what a person may have edited.
func (c *Client) Reload(ctx context.Context) error { return c.call(ctx, "POST", "/reload", nil, nil) }

// Stop has the owner end.
func (c *Client) Stop(ctx context.Context) error { return c.call(ctx, "POST", "/stop", nil, nil) }

// Keep opens a tunnel that outlives this command.
func (c *Client) Keep(ctx context.Context, t registry.Tunnel) (e Event, err error) {
	t.Keep = true
	return e, c.call(ctx, "POST", "/tunnels", t, &e)
}

// Open opens a tunnel that lives until this call returns, and hands each of
// its events to on, the ready one first; those of its streams where streams is
// set. It returns why the tunnel ended; ErrOwnerGone where the owner did.
func (c *Client) Open(ctx context.Context, t registry.Tunnel, streams bool, on func(Event)) (reason string, err error) {
	resp, err := c.do(ctx, "POST", "/tunnels?streams="+strconv.FormatBool(streams), t)
	if err != nil {
		return "", goneBeforeReady(ctx, err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return "", fmt.Errorf("control socket: %w", err)
		}
		if e.Event == "end" {
			return e.Reason, ownerGone(e.Reason)
		}
		on(e)
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return "", ErrOwnerGone
}

// goneBeforeReady tells an owner that ended, or is about to, from one that
// refuses the tunnel.
func goneBeforeReady(ctx context.Context, err error) error {
	var api *Error
	said := errors.As(err, &api)
	if ctx.Err() != nil || said && api.Code != CodeStopping {
		return err
	}
	return fmt.Errorf("%w: %w", ErrOwnerGone, err)
}

func ownerGone(reason string) error {
	if reason == EndHandover {
		return ErrOwnerGone
	}
	return nil
}

// call does one request with one answer.
func (c *Client) call(ctx context.Context, method, path string, body, into any) error {
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// do gives the response of a request that was taken; an *Error where it was
// not.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://p2ptun"+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRequest))
	e := &Error{}
	if json.Unmarshal(text, e) != nil || e.Code == "" {
		return nil, fmt.Errorf("control socket: %s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	return nil, e
}
