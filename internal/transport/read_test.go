package transport

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
)

// A socket that can't be read for minutes ends nothing, unless it is gone.
func TestReaderOutlivesAShortage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		u, err := NewUDP(Config{Sockets: 1}, newRecorder(), zerolog.New(&log), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		s := u.shards[0]
		fail := func(e syscall.Errno) (int, error) {
			return 0, &net.OpError{Op: "read", Net: "udp", Err: os.NewSyscallError("recvmmsg", e)}
		}
		errnos := []syscall.Errno{syscall.ENOBUFS, syscall.ENOMEM, syscall.EPERM, syscall.EINTR}
		const failures = 300
		tries, start := 0, time.Now()
		n, err := s.await(t.Context(), func() (int, error) {
			if tries++; tries <= failures {
				return fail(errnos[tries%len(errnos)])
			}
			return 7, nil
		})
		if n != 7 || err != nil || time.Since(start) > failures*time.Second {
			t.Errorf("read %d, %v after %v; want 7 within a second of its end", n, err, time.Since(start))
		}
		u.unread.End()
		if s := log.String(); strings.Count(s, "\n") != 2 || testutil.ToFloat64(u.m.readErrors) != failures {
			t.Errorf("%v errors counted, log:\n%s", testutil.ToFloat64(u.m.readErrors), s)
		}

		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := s.await(ctx, func() (int, error) { return fail(syscall.ENOBUFS) })
			ended <- err
		}()
		time.Sleep(time.Minute)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("stopped meanwhile: %v", err)
		}
		if _, err := s.await(t.Context(), func() (int, error) { return fail(syscall.EBADF) }); !errors.Is(err, syscall.EBADF) {
			t.Errorf("a socket that is gone: %v", err)
		}
		u.unread.End()
	})
}
