package telemetry

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

func TestEpisodeWritesTwoLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		e := NewEpisode(zerolog.New(&out), time.Minute, "began", "over")
		written := func() string {
			e.mu.Lock() // lines are written under it
			defer e.mu.Unlock()
			return out.String()
		}
		for range 300 { // longer than a minute, but never quiet for one
			e.Note(errors.New("no room"))
			time.Sleep(time.Second)
		}
		if s := written(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "began") {
			t.Fatalf("while it lasts, want one line:\n%s", s)
		}
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if s := written(); strings.Count(s, "\n") != 2 || !strings.Contains(s, `"failures":300`) || !strings.Contains(s, "over") {
			t.Fatalf("once quiet:\n%s", s)
		}
		e.Note(errors.New("again"))
		e.End()
		e.End()
		if s := written(); strings.Count(s, "\n") != 4 || !strings.Contains(s, `"failures":1`) ||
			strings.Count(s, "over") != 1 || !strings.Contains(s, `"message":"began, until this stopped"`) {
			t.Errorf("a second episode, ended:\n%s", s)
		}
	})
}
