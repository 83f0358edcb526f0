package servers

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/Diarkis/diarkis/bench/internal/harness"
)

// caller is a client that waits for its answer.
type caller interface {
	// call sends msg and reads an answer of the same length into it.
	call(msg []byte) error
}

// streamCaller calls over anything that reads and writes bytes.
type streamCaller struct{ io.ReadWriter }

func (c streamCaller) call(msg []byte) error {
	if _, err := c.Write(msg); err != nil {
		return err
	}
	_, err := io.ReadFull(c, msg)
	return err
}

// runCallers is the load generator for peers that bring their own client: a
// goroutine for each connection that open makes.
func runCallers(l *harness.Link, open func(a loadArgs) (caller, error)) error {
	var a loadArgs
	if err := l.Args(&a); err != nil {
		return err
	}
	var answers atomic.Int64
	failed := make(chan error, a.Clients)
	for i := range a.Clients {
		c, err := open(a)
		if err != nil {
			return fmt.Errorf("open connection %d: %w", i, err)
		}
		go func() {
			msg := make([]byte, a.Bytes)
			for {
				if err := c.call(msg); err != nil {
					failed <- err
					return
				}
				answers.Add(1)
			}
		}()
	}
	return report(l, a, func(d time.Duration) (int, error) {
		before := answers.Load()
		select {
		case err := <-failed:
			return 0, err
		case <-time.After(d):
			return int(answers.Load() - before), nil
		}
	})
}

// echoAll sends back whatever comes, until the peer is gone.
func echoAll(c io.ReadWriter) {
	buf := make([]byte, 2048)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

// runTCPEcho is a server with a goroutine for each connection.
func runTCPEcho(l *harness.Link) error {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer ln.Close()
	memory := answer(askMemory)
	go func() {
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go echoAll(c)
			}
		}
	}()
	return serve(l, ln.Addr(), memory)
}

func runTCPLoad(l *harness.Link) error {
	return runCallers(l, func(a loadArgs) (caller, error) {
		c, err := net.Dial("tcp4", a.Server.String())
		return streamCaller{c}, err
	})
}
