package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// MARSStatus is what `diarkisd mars status` shows: who leads the cluster, as one
// node sees it.
type MARSStatus struct {
	Role string `json:"role"` // of the node that answers
	PID  int    `json:"pid"`
	Node string `json:"node"`
	// Authority is the mesh address of the authority, "" when none is known.
	Authority     string `json:"authority"`
	AuthorityRole string `json:"authority_role"`
	Live          bool   `json:"live"` // the authority vouches for what this node knows
	// AuthorityAgeMS is how long ago this node heard the authority: one that died is live for
	// some seconds more. 0 on the authority itself, null where that is not known.
	AuthorityAgeMS *int64 `json:"authority_age_ms"`
	Reigns         bool   `json:"reigns"` // this node is the authority
	Epoch          string `json:"epoch"`  // generation.term/founder, "" when none was ever heard of
	// Provisional: the authority was founded lately, without hearing everybody.
	Provisional bool `json:"provisional"`
	// LeaseMS is how much longer the authority may write without hearing from its
	// voters, 0 when it may not and on every other node.
	LeaseMS int64    `json:"lease_ms"`
	Voters  []string `json:"voters"` // mesh addresses
	// Members is the registry on the authority, of all namespaces, else this node's
	// directory, without ages.
	Members []MARSMember `json:"members"`
	Waiting string       `json:"waiting,omitempty"` // for what, "" when all is well
}

// MARSMember is a member of the cluster.
type MARSMember struct {
	Node   string `json:"node"`
	Role   string `json:"role"`
	Type   string `json:"type"`
	State  string `json:"state"`
	Hidden bool   `json:"hidden"` // not handed out: suspected or silent
	// AgeMS is how long ago the authority heard of the member; null where that is not known.
	AgeMS *int64 `json:"age_ms"`
}

// marsStatus is what /mars answers.
func (n *Node) marsStatus(ctx context.Context) (MARSStatus, error) {
	node := n.member.Load()
	if node == nil {
		return MARSStatus{}, errors.New("starting")
	}
	st, err := node.Status(ctx)
	if err != nil {
		return MARSStatus{}, err
	}
	d := node.Directory()
	out := MARSStatus{
		Role: string(n.cfg.Role), PID: os.Getpid(), Node: string(n.MeshAddr()),
		Authority: string(st.Authority), AuthorityRole: st.AuthorityRole, Live: d.Live, Reigns: node.Reigns(),
		Provisional: st.Provisional, LeaseMS: st.Lease.Milliseconds(), Voters: []string{}, Members: []MARSMember{}, Waiting: st.Waiting,
	}
	if !st.Epoch.IsZero() {
		out.Epoch = st.Epoch.String()
	}
	if age, ok := node.AuthorityAge(); ok {
		ms := age.Milliseconds()
		out.AuthorityAgeMS = &ms
	}
	for _, v := range st.Voters {
		out.Voters = append(out.Voters, string(v.Node))
	}
	if out.Reigns {
		for _, m := range st.Members {
			age := m.Age.Milliseconds()
			out.Members = append(out.Members, MARSMember{string(m.Node), m.Role, m.Type, m.State.String(), m.Hidden, &age})
		}
		return out, nil
	}
	for _, m := range d.Members {
		out.Members = append(out.Members, MARSMember{string(m.Node), m.Role, m.Type, m.State.String(), m.Hidden, nil})
	}
	return out, nil
}

// marsRecover is the task with which an operator founds the cluster anew. It waits
// until this node follows an authority, whoever that is.
func (n *Node) marsRecover(ctx context.Context) (string, error) {
	d := n.marsNode.Directory()
	switch {
	case n.draining.Load():
		return "", errTerminating
	case d.Live:
		return "", fmt.Errorf("there is nothing to recover, %s is the authority", d.Authority)
	}
	began := time.Now()
	if err := await(ctx, n.marsNode.Recover()); err != nil {
		return "", err
	}
	if n.marsNode.Reigns() {
		return "cluster founded anew " + after(began) + ", this node is the authority", nil
	}
	return fmt.Sprintf("%s is the authority %s; this node founded nothing", n.marsNode.Directory().Authority, after(began)), nil
}

// await returns what comes of what the membership was asked for.
func await(ctx context.Context, done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("what comes of it is not known yet: %w", context.Cause(ctx))
	}
}

// marsTransfer is the task with which an operator moves the office of the authority.
// It waits until that has happened, as this node sees it.
func (n *Node) marsTransfer(ctx context.Context, params []string) (string, error) {
	if len(params) != 1 {
		return "", taskUsage("give the mesh address of one node: there are %d parameters", len(params))
	}
	to := id.Node(strings.TrimSpace(params[0]))
	if _, err := to.AddrPort(); err != nil {
		return "", &taskUsageError{err.Error()}
	}
	d := n.marsNode.Directory()
	_, known := d.Lookup(to)
	switch {
	case n.draining.Load():
		return "", errTerminating
	case !d.Live:
		return "", errors.New("there is no authority that could hand its office over")
	case d.Authority == to:
		return "", fmt.Errorf("%s is the authority already", to)
	case !known:
		var names []string
		for _, m := range d.Members {
			names = append(names, string(m.Node))
		}
		slices.Sort(names)
		return "", fmt.Errorf("%s is no member; members are %s", to, strings.Join(names, ", "))
	}
	began := time.Now()
	if err := await(ctx, n.marsNode.Transfer(to)); err != nil {
		return "", err
	}
	// The directory follows: what is asked next must not find the old authority in it.
	if !waitFor(ctx, func() bool { d := n.marsNode.Directory(); return d.Live && d.Authority == to }) {
		return "", fmt.Errorf("the office was handed over %s, and is in other hands since: %s", after(began), n.marsNode.Directory().Authority)
	}
	return fmt.Sprintf("%s is the authority %s, was %s", to, after(began), d.Authority), nil
}
