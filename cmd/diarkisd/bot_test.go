package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/Diarkis/diarkis/internal/lifecycle"
)

// TestBotExitCodes: 64 for what is wrong with the command line, before anything is tried, and
// 1 for what came of it.
func TestBotExitCodes(t *testing.T) {
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = fmt.Fprint(w, `{"error":{"code":401,"message":"the header ClientKey is missing or wrong"}}`)
	}))
	defer refusing.Close()
	for args, want := range map[string]int{
		"":                               lifecycle.ExitUsage,
		"--http 127.0.0.1:7000":          lifecycle.ExitUsage,
		"--http URL --count 0":           lifecycle.ExitUsage,
		"--http URL --count -1":          lifecycle.ExitUsage,
		"--http URL --count 1000000":     lifecycle.ExitUsage,
		"--http URL --count x":           lifecycle.ExitUsage,
		"--http URL --rate 0":            lifecycle.ExitUsage,
		"--http URL --rate -1":           lifecycle.ExitUsage,
		"--http URL --rate NaN":          lifecycle.ExitUsage,
		"--http URL --rate 1001":         lifecycle.ExitUsage,
		"--http URL --size 0":            lifecycle.ExitUsage,
		"--http URL --size 1":            lifecycle.ExitUsage,
		"--http URL --size 5000":         lifecycle.ExitUsage,
		"--http URL --loss 99":           lifecycle.ExitUsage,
		"--http URL --duration -2s":      lifecycle.ExitUsage,
		"--http URL --duration 5":        lifecycle.ExitUsage,
		"--http URL --type=":             lifecycle.ExitUsage,
		"--http URL --nonsense":          lifecycle.ExitUsage,
		"--http URL nonsense":            lifecycle.ExitUsage,
		"--http URL":                     lifecycle.ExitFailed, // refused for good
		"--http URL --duration 0 --json": lifecycle.ExitFailed,
	} {
		line := append([]string{"diarkisd", "bot"}, strings.Fields(strings.ReplaceAll(args, "URL", refusing.URL))...)
		if code := run(line); code != want {
			t.Errorf("bot %s: exit %d, want %d", args, code, want)
		}
	}
}

// TestDevRefuses: what bot refuses, dev does too, before it starts a cluster.
func TestDevRefuses(t *testing.T) {
	for _, args := range []string{"--bots -1", "--bots 1000000", "--duration -1s", "--bots 2 --duration -1s", "--loss 99"} {
		if code := run(append([]string{"diarkisd", "dev"}, strings.Fields(args)...)); code != lifecycle.ExitUsage {
			t.Errorf("dev %s: exit %d, want %d", args, code, lifecycle.ExitUsage)
		}
	}
}

// TestEmptyTypeIsQuoted: who reads what was refused sees that it was empty.
func TestEmptyTypeIsQuoted(t *testing.T) {
	cmd := botCommand()
	cmd.SetArgs([]string{"--http", "http://127.0.0.1:1", "--type", ""})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.ExecuteContext(context.Background()); err == nil || !strings.Contains(err.Error(), `--type "" makes no sense`) {
		t.Errorf("refused with %v", err)
	}
}
