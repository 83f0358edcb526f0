//go:build unix

package lifecycle

import (
	"context"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestATaskThatTakesItsTimeKeepsNoSignalBack: nor does a node that starts.
func TestATaskThatTakesItsTimeKeepsNoSignalBack(t *testing.T) {
	n, log := taskNode(t, "info")
	synctest.Test(t, func(t *testing.T) {
		n.started.Store(false)
		soft, stop := context.WithCancel(t.Context())
		hard, kill := context.WithCancelCause(t.Context())
		defer kill(nil)
		signals := make(chan os.Signal, 4)
		q := newTaskQueue()
		var wg sync.WaitGroup
		wg.Go(func() { watchSignals(soft, hard, signals, signalActions{n.log, false, stop, kill, q}) })
		wg.Go(func() { runTasks(hard, q, []*Node{n}) })
		for range 3 {
			signals <- syscall.SIGUSR1
		}
		signals <- syscall.SIGUSR2
		synctest.Wait()
		signals <- syscall.SIGTERM
		synctest.Wait()
		if soft.Err() == nil {
			t.Error("SIGTERM waits for a task")
		}
		time.Sleep(2 * time.Second)
		n.started.Store(true)
		time.Sleep(time.Second)
		for _, s := range []string{"SIGUSR1", "SIGUSR2"} {
			if got := strings.Count(log.String(), `"signal":"`+s+`"`); got < 1 || got > 2 {
				t.Errorf("%s was looked at %d times, want 1 or 2", s, got)
			}
		}
		signals <- syscall.SIGINT
		wg.Wait()
		if hard.Err() == nil || !strings.Contains(log.String(), "stop requested again") {
			t.Errorf("the second signal does not end it:\n%s", log)
		}
	})
}
