package servers

import (
	"errors"
	"io"

	"github.com/xtaci/kcp-go/v5"

	"github.com/Diarkis/diarkis/bench/internal/harness"
)

// tuneKCP gives a session one of the two settings that its authors publish. Neither
// has encryption or forward error correction here.
func tuneKCP(s *kcp.UDPSession, turbo bool) {
	const window = 1024
	s.SetWindowSize(window, window)
	if turbo {
		s.SetNoDelay(1, 10, 2, 1)
		s.SetACKNoDelay(true)
	} else {
		s.SetNoDelay(0, 40, 0, 0)
	}
}

func runKCPEcho(l *harness.Link) error {
	var a serverArgs
	if err := l.Args(&a); err != nil {
		return err
	}
	ln, err := kcp.ListenWithOptions("127.0.0.1:0", nil, 0, 0)
	if err != nil {
		return err
	}
	defer ln.Close()
	_ = ln.SetReadBuffer(4 << 20) // the system may grant less
	_ = ln.SetWriteBuffer(4 << 20)
	memory := answer(askMemory)
	go func() {
		for {
			s, err := ln.AcceptKCP()
			if errors.Is(err, io.ErrClosedPipe) {
				return
			}
			if err == nil {
				tuneKCP(s, a.Turbo)
				go echoAll(s)
			}
		}
	}()
	return serve(l, ln.Addr(), memory)
}

func dialKCP(a loadArgs) (*kcp.UDPSession, error) {
	s, err := kcp.DialWithOptions(a.Server.String(), nil, 0, 0)
	if err != nil {
		return nil, err
	}
	tuneKCP(s, a.Turbo)
	return s, nil
}

func runKCPLoad(l *harness.Link) error {
	return runCallers(l, func(a loadArgs) (caller, error) {
		s, err := dialKCP(a)
		return streamCaller{s}, err
	})
}
