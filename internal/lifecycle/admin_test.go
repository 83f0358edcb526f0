package lifecycle

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/config"
)

// Who connects to the admin listener and says nothing keeps no scrape out.
func TestAdminMakesRoom(t *testing.T) {
	n := &Node{cfg: &config.Config{Metrics: config.Metrics{Address: "127.0.0.1"}}, log: zerolog.Nop(), reg: prometheus.NewRegistry()}
	n.beat.Beat()
	s := newStack(n.log)
	if err := n.startAdmin(s); err != nil {
		t.Fatal(err)
	}
	defer s.stop(context.Background())
	var silent []net.Conn
	for range 2 * adminConnections {
		c, err := net.Dial("tcp", n.adminAddr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		silent = append(silent, c)
	}
	for range 3 {
		client := http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second} // each its own, idle afterwards
		defer client.CloseIdleConnections()
		res, err := client.Get("http://" + n.adminAddr.String() + "/livez")
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("status %d", res.StatusCode)
		}
	}
	_ = silent[0].SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := silent[0].Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the oldest silent connection: %v, want its end", err)
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}
