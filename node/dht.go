package node

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// ownKad is the prefix of the DHT of a network of one's own: its nodes and
// those of the public one must not fill each other's tables.
const ownKad protocol.ID = "/p2ptun"

const (
	// findLimit bounds the search for one peer, and findPause is the pause
	// after one that found nothing.
	findLimit = 30 * time.Second
	findPause = 5 * time.Second
	// enterLimit is how long a search waits for the DHT to be entered, and how
	// long one attempt to reach the nodes that it is entered by may take;
	// enterLook is how often it is looked whether it is. The pauses between
	// attempts grow.
	enterLimit    = 5 * time.Second
	enterLook     = 50 * time.Millisecond
	enterPause    = time.Second
	maxEnterPause = 30 * time.Second
	// selfEvery is how often the nodes nearest to us in the DHT are visited,
	// so that they can say where we are; selfSoon is how soon after a change.
	selfEvery = 10 * time.Minute
	selfSoon  = time.Second
	// maxSearches bounds the searches at the same time.
	maxSearches = 64
)

// DHT is who helps to find peers beyond the LAN.
type DHT struct {
	// Bootstrap are the nodes by which the DHT is entered. If empty, those of
	// the public one.
	Bootstrap []peer.AddrInfo
	// Public says that it is the public IPFS DHT.
	Public bool
	// Server says that this node answers others' searches.
	Server bool
}

// finder finds peers in a DHT and lets itself be found there.
type finder struct {
	host  host.Host
	ways  []peer.AddrInfo // by which the DHT is entered
	kad   *dht.IpfsDHT
	log   *slog.Logger
	found func(peer.AddrInfo)
	moved chan struct{} // holds one where our addresses have changed

	tasks sync.WaitGroup

	mu       sync.Mutex
	searches map[peer.ID]chan struct{} // closed when the search has ended, and the pause after it
}

func newFinder(h host.Host, cfg DHT, log *slog.Logger, found func(peer.AddrInfo)) (*finder, error) {
	mode := dht.ModeClient
	if cfg.Server {
		mode = dht.ModeServer
	}
	opts := []dht.Option{dht.Mode(mode), dht.DisableProviders(), dht.DisableValues()}
	if cfg.Public {
		if len(cfg.Bootstrap) == 0 {
			cfg.Bootstrap = dht.GetDefaultBootstrapPeerAddrInfos()
		}
		opts = []dht.Option{dht.Mode(mode), dht.QueryFilter(dht.PublicQueryFilter), dht.RoutingTableFilter(dht.PublicRoutingTableFilter)}
	} else {
		opts = append(opts, dht.ProtocolPrefix(ownKad))
	}
	kad, err := dht.New(h, append(opts, dht.BootstrapPeers(cfg.Bootstrap...))...)
	if err != nil {
		return nil, fmt.Errorf("DHT: %w", err)
	}
	return &finder{host: h, ways: cfg.Bootstrap, kad: kad, log: log, found: found, moved: make(chan struct{}, 1), searches: map[peer.ID]chan struct{}{}}, nil
}

// serve enters the DHT and keeps us findable until ctx ends.
func (f *finder) serve(ctx context.Context) {
	if err := f.kad.Bootstrap(ctx); err != nil {
		f.log.Info("enter the DHT", "err", err)
	}
	for ctx.Err() == nil {
		f.enter(ctx)
		visit, cancel := context.WithTimeout(ctx, findLimit)
		_, err := f.kad.GetClosestPeers(visit, string(f.kad.PeerID()))
		cancel()
		again := selfEvery
		if err != nil { // nobody is known yet: no network, or we are just starting
			again = findPause
		}
		f.rest(ctx, again)
	}
}

// enter returns when somebody of the DHT is known. The library asks two of those
// it is entered by, one after the other, and then not for minutes.
func (f *finder) enter(ctx context.Context) {
	for _, way := range f.ways {
		clearBackoff(f.host, way.ID)
	}
	for pause := enterPause; !f.isEntered() && len(f.ways) > 0 && ctx.Err() == nil; pause = min(2*pause, maxEnterPause) {
		f.knock(ctx)
		waiting, cancel := context.WithTimeout(ctx, pause)
		if f.awaitEntry(waiting, f.moved) {
			pause = enterPause / 2
		}
		cancel()
	}
}

// knock dials all that the DHT is entered by, until it is entered or all have
// failed.
func (f *finder) knock(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, enterLimit)
	defer cancel()
	var dials sync.WaitGroup
	for _, way := range f.ways {
		clearBackoff(f.host, way.ID)
		dials.Go(func() {
			if err := f.host.Connect(ctx, way); err != nil {
				f.log.Debug("enter the DHT", "by", way.ID, "err", err)
			}
		})
	}
	go func() { dials.Wait(); cancel() }()
	f.awaitEntry(ctx, nil)
	cancel()
	dials.Wait()
}

// awaitEntry waits until the DHT is entered, ctx ends or wake says something;
// only then it returns true.
func (f *finder) awaitEntry(ctx context.Context, wake <-chan struct{}) bool {
	look := time.NewTicker(enterLook)
	defer look.Stop()
	for !f.isEntered() {
		select {
		case <-look.C:
		case <-wake:
			return true
		case <-ctx.Done():
			return false
		}
	}
	return false
}

func (f *finder) isEntered() bool { return f.known() > 0 }

// rest waits for the next visit.
func (f *finder) rest(ctx context.Context, pause time.Duration) {
	select {
	case <-f.moved:
		select {
		case <-time.After(selfSoon):
		case <-ctx.Done():
		}
	case <-time.After(pause):
	case <-ctx.Done():
	}
}

// move says that our addresses have changed.
func (f *finder) move() {
	select {
	case f.moved <- struct{}{}:
	default:
	}
}

// search looks for a peer, unless that is being done or was done just now. It
// returns a channel that is closed when there is nothing to wait for.
func (f *finder) search(ctx context.Context, p peer.ID) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if running, ok := f.searches[p]; ok {
		return running
	}
	done := make(chan struct{})
	if len(f.searches) >= maxSearches {
		close(done)
		return done
	}
	f.searches[p] = done
	f.tasks.Go(func() { f.find(ctx, p, done) })
	return done
}

func (f *finder) find(ctx context.Context, p peer.ID, done chan struct{}) {
	entering, cancel := context.WithTimeout(ctx, enterLimit)
	f.awaitEntry(entering, nil)
	cancel()
	looking, cancel := context.WithTimeout(ctx, findLimit)
	info, err := f.kad.FindPeer(looking, p)
	cancel()
	if err == nil && len(info.Addrs) > 0 {
		f.found(info)
	}
	close(done)
	select {
	case <-time.After(findPause):
	case <-ctx.Done():
	}
	f.mu.Lock()
	delete(f.searches, p)
	f.mu.Unlock()
}

// known is how many nodes of the DHT we know.
func (f *finder) known() int { return f.kad.RoutingTable().Size() }

// close returns when nothing of it runs; what it was called with must have
// ended.
func (f *finder) close() error {
	f.tasks.Wait()
	return f.kad.Close()
}
