package lifecycle

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/users"
	"github.com/Diarkis/diarkis/internal/wire"
)

// A client learns with Accept which run of which node it is on, as the directory has it.
func TestAcceptNamesTheNode(t *testing.T) {
	d := newDev(t, 0)
	err := runAll(context.Background(), context.Background(), d.nodes, func(ctx context.Context) error {
		if err := d.awaitPlayable(ctx); err != nil {
			return err
		}
		for _, n := range d.nodes {
			if n.cfg.Role != config.RoleUDP {
				continue
			}
			got, err := acceptedBy(n)
			if err != nil {
				return err
			}
			self := n.marsNode.Self()
			if got == "" || got != mars.Token(self.Incarnation) {
				t.Errorf("token %q, want that of the node's incarnation", got)
			}
			return nil
		}
		return errors.New("no udp node")
	})
	if err != nil {
		t.Fatal(err)
	}
}

// acceptedBy does a handshake with n and returns the token it told.
func acceptedBy(n *Node) (token string, err error) {
	q, err := n.users.Reserve(users.ReserveRequest{UID: "u"})
	if err != nil {
		return "", err
	}
	creds := secure.Credentials{SID: q.SID, Key: q.Key, IV: q.IV, Mac: q.Mac}
	hs, err := secure.NewClient(creds, "", secure.ClientOptions{}, rand.Reader)
	if err != nil {
		return "", err
	}
	s, err := net.Dial("udp", n.PublicAddr())
	if err != nil {
		return "", err
	}
	defer func() { _ = s.Close() }()
	confirm, err := hs.Challenge(answerTo(s, hs.Hello(), wire.PacketChallenge), false, nil)
	if err != nil {
		return "", err
	}
	body, _, _, err := hs.Accept(time.Now(), answerTo(s, confirm, wire.PacketAccept))
	return body.Token, err
}

// answerTo repeats a packet until one of a type comes, or 10 s have passed.
func answerTo(s net.Conn, pkt []byte, want wire.PacketType) []byte {
	for range 50 {
		_, _ = s.Write(pkt)
		_ = s.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		b := make([]byte, 2048)
		if n, err := s.Read(b); err == nil && wire.TypeOf(b[:n]) == want {
			return b[:n]
		}
	}
	return nil
}
