package netpeer

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/bench/internal/netsim"
	"github.com/Diarkis/diarkis/bench/internal/netsim/netsimtest"
)

// patience is how long tests wait for what should be there much sooner.
const patience = 20 * time.Second

var openers = map[string]Opener{
	"ours":           Ours,
	"kcp normal":     KCPNormal.Open,
	"kcp turbo":      KCPTurbo.WithWindow(1024).Open,
	"kcp FEC":        KCPTurbo.WithFEC(10, 3).Open,
	"quic stream":    QUICStream,
	"quic datagrams": QUICDatagrams,
	"tcp":            TCP("reno"), // every kernel has it
}

func open(t *testing.T, o Opener, n netsim.Hosts, options Options) Link {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	link, err := o(ctx, n, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(link.Close)
	return link
}

// TestMessagesArriveInOrder sends a few small messages each way.
func TestMessagesArriveInOrder(t *testing.T) {
	n := netsimtest.New(t, netsim.Options{})
	if n == nil {
		return
	}
	const count, size = 20, 100
	port := uint16(1000)
	for name, opener := range openers {
		for _, down := range []bool{false, true} {
			port++
			t.Run(map[bool]string{false: "up/", true: "down/"}[down]+name, func(t *testing.T) {
				got := make(chan []byte, count)
				link := open(t, opener, n.Hosts, Options{
					Port: port, Down: down, Size: size, Arrived: func(b []byte) { got <- bytes.Clone(b) },
				})
				b := make([]byte, size)
				for i := range count {
					binary.BigEndian.PutUint64(b, uint64(i))
					if err := link.Send(b); err != nil {
						t.Fatal(err)
					}
				}
				late := time.After(patience)
				for i := range count {
					select {
					case b := <-got:
						if len(b) != size || binary.BigEndian.Uint64(b) != uint64(i) {
							t.Fatalf("message %d is %x", i, b)
						}
					case <-late:
						t.Fatalf("message %d did not arrive", i)
					}
				}
			})
		}
	}
}

// TestBulkKeepsComing transfers more than any window holds.
func TestBulkKeepsComing(t *testing.T) {
	n := netsimtest.New(t, netsim.Options{})
	if n == nil {
		return
	}
	const chunk, want = 60 << 10, 6 << 20
	port := uint16(2000)
	for name, opener := range openers {
		if name == "quic datagrams" {
			continue
		}
		port++
		t.Run(name, func(t *testing.T) {
			done, total := make(chan struct{}), 0
			link := open(t, opener, n.Hosts, Options{Port: port, Down: true, Arrived: func(b []byte) {
				if total < want && total+len(b) >= want {
					close(done)
				}
				total += len(b)
			}})
			stopped := make(chan error, 1)
			go func() {
				for {
					if err := link.Send(make([]byte, chunk)); err != nil {
						stopped <- err
						return
					}
				}
			}()
			select {
			case <-done:
			case err := <-stopped:
				t.Errorf("stopped: %v", err)
				return
			case <-time.After(patience):
				t.Errorf("%d bytes did not arrive within %v", want, patience)
			}
			link.Close()
			<-stopped
		})
	}
}
