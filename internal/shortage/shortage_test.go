package shortage

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestPauseGrowsToASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pause
		took := func() time.Duration {
			start := time.Now()
			p.Wait(nil)
			return time.Since(start)
		}
		for want := PauseMin; want < PauseMax; want *= 2 {
			if got := took(); got != want {
				t.Errorf("waited %v, want %v", got, want)
			}
		}
		for range 3 {
			if got := took(); got != PauseMax {
				t.Errorf("waited %v, want %v", got, PauseMax)
			}
		}
		p.Reset()
		if got := took(); got != PauseMin {
			t.Errorf("waited %v after a success, want %v", got, PauseMin)
		}
		done := make(chan struct{})
		close(done)
		start := time.Now()
		if p.Wait(done) || time.Since(start) != 0 {
			t.Error("waited although the work is done")
		}
	})
}

func TestKindsOfErrors(t *testing.T) {
	errno := func(e syscall.Errno) error {
		return fmt.Errorf("read: %w", &net.OpError{Op: "read", Net: "udp", Err: os.NewSyscallError("recvmsg", e)})
	}
	for _, tc := range []struct {
		err       error
		end, loss bool
	}{
		{nil, false, false},
		{fmt.Errorf("accept: %w", net.ErrClosed), true, false},
		{errno(syscall.EBADF), true, false},
		{errno(syscall.ENOBUFS), false, true},
		{errno(syscall.EPERM), false, true},
		{errno(syscall.ENETUNREACH), false, true},
		{errno(syscall.EMFILE), false, false},
		{errno(syscall.ECONNREFUSED), false, false},
		{errno(syscall.EMSGSIZE), false, false}, // quic-go and the path search need to see it
		{errno(syscall.EIO), false, false},
	} {
		if end, loss := IsEnd(tc.err), IsLoss(tc.err); end != tc.end || loss != tc.loss {
			t.Errorf("%v: end %v, loss %v; want %v, %v", tc.err, end, loss, tc.end, tc.loss)
		}
	}
}
