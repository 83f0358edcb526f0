package transport

import (
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// What a client calls its end is not counted as a fault of ours, or of anybody's.
func TestClientsCloseIsNoAlarm(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, nil, nil)
			for _, code := range []wire.CloseCode{
				wire.CloseProtocol, wire.CloseFlow, wire.CloseSlow, wire.CloseRate, wire.CloseInternal, 77,
			} {
				c := r.join("u")
				c.write(c.sealer.Finish(time.Now(), wire.Close{Code: code, Reason: "mine"}.AppendTo(c.sealer.Begin(nil)), 0))
			}
			r.requireFigure("connections_closed_total", wire.CloseNormal.String(), 6)
			for _, code := range []wire.CloseCode{wire.CloseProtocol, wire.CloseFlow, wire.CloseSlow, wire.CloseRate, wire.CloseInternal} {
				if n := r.figure("connections_closed_total", code.String()); n != 0 {
					t.Errorf("%v connections counted as %v", n, code)
				}
			}
		})
	}
}
