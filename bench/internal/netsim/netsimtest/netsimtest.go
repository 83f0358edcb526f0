// Package netsimtest makes simulated networks for tests.
package netsimtest

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/Diarkis/diarkis/bench/internal/netsim"
)

// New makes a network that ends with the test, which is skipped where there can't be
// one. When this process is not root it runs the whole test again as root of a user
// namespace and returns nil: what came of that is the result.
func New(t *testing.T, o netsim.Options) *netsim.Network {
	t.Helper()
	if os.Geteuid() > 0 {
		again(t)
		return nil
	}
	n, err := netsim.New(o)
	if errors.Is(err, netsim.ErrNotAllowed) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func again(t *testing.T) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run", "^"+t.Name()+"$")
	cmd.SysProcAttr = netsim.InUserNamespace()
	out, err := cmd.CombinedOutput()
	t.Logf("as root of a user namespace:\n%s", out)
	if _, ran := errors.AsType[*exec.ExitError](err); ran {
		t.Error(err)
	} else if err != nil {
		t.Skip(netsim.ErrNotAllowed, err)
	}
}
