package transport

import (
	"fmt"
	"testing"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

func TestOwnKeepsAConnectionInItsShard(t *testing.T) {
	for n := 1; n <= shardsMax; n++ {
		k := &core{}
		for i := range n {
			k.shards = append(k.shards, &shard{core: k, index: i})
		}
		for _, s := range k.shards {
			for first := range 256 {
				scid := s.own(wire.CID{byte(first), 1, 2})
				if got := k.shardOf(scid); got != s {
					t.Fatalf("%d shards: scid %x of shard %d found in %d", n, scid, s.index, got.index)
				}
			}
		}
	}
}

// TestConnectionsSpreadOverShards also tells that each reader gets what is its own:
// a datagram at the wrong one finds no connection.
func TestConnectionsSpreadOverShards(t *testing.T) {
	r := start(t, "UDP", func(c *Config) { c.Limits.AddressPerSec = -1 }, nil)
	if len(r.core.shards) < 2 {
		t.Skip("one socket only on this system")
	}
	const n = 60
	for i := range n {
		c := r.join(id.UID(fmt.Sprint("u", i)))
		c.send(cmdEcho, []byte("hello"), reliable.Reliable)
		c.pump("answer", func() bool { return len(c.got) == 1 })
	}
	for _, s := range r.core.shards {
		if got := len(s.appendLive(nil)); got < n/20 {
			t.Errorf("shard %d has %d of %d connections", s.index, got, n)
		}
	}
}
