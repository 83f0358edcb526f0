package lifecycle

import (
	"context"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/httpapi"
)

// operations is docs/operations.md from one heading or text to another.
func operations(t *testing.T, from, to string) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), from)
	part, _, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		t.Fatalf("docs/operations.md has nothing from %q to %q", from, to)
	}
	return part
}

var descName = regexp.MustCompile(`fqName: "(diarkis_[a-z0-9_]+)"`)

// registered are the names of our metrics in a node's registry.
func registered(n *Node) map[string]bool {
	ch := make(chan *prometheus.Desc)
	go func() { n.reg.Describe(ch); close(ch) }()
	out := map[string]bool{}
	for d := range ch {
		if m := descName.FindStringSubmatch(d.String()); m != nil {
			out[m[1]] = true
		}
	}
	return out
}

// inFull is the metric that …_short stands for behind name in a row: with as much of name
// in front as makes it one.
func inFull(short, name string, have map[string]bool) string {
	short = strings.TrimPrefix(short, "…_")
	for prefix := name; ; {
		i := strings.LastIndexByte(prefix, '_')
		if i < 0 {
			return "diarkis_" + short // which there is not
		}
		prefix = prefix[:i]
		if full := prefix + "_" + short; have[full] {
			return full
		}
	}
}

// TestMetricsAreAsDocumented runs a node of each role: all of their metrics are in the
// table of docs/operations.md, and everything that is named there is a metric.
func TestMetricsAreAsDocumented(t *testing.T) {
	d := newDev(t, 0)
	var mu sync.Mutex
	have := map[string]bool{}
	err := runAll(context.Background(), context.Background(), d.nodes, func(ctx context.Context) error {
		if err := d.awaitPlayable(ctx); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for _, n := range d.nodes {
			maps.Copy(have, registered(n))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("diarkis_[a-z0-9_]+")
	table := map[string]bool{}
	for l := range strings.SplitSeq(operations(t, "| metric | labels |", "Why packets are dropped"), "\n") {
		first, _, _ := strings.Cut(strings.TrimPrefix(l, "| "), " | ")
		for _, short := range regexp.MustCompile("…_[a-z0-9_]+").FindAllString(first, -1) {
			first += " " + inFull(short, name.FindString(first), have)
		}
		for _, m := range name.FindAllString(first, -1) {
			table[m] = true
		}
	}
	for m := range have {
		if !table[m] {
			t.Errorf("%s is not in the table", m)
		}
	}
	for m := range table {
		if !have[m] {
			t.Errorf("%s is in the table and in no registry", m)
		}
	}
	if len(have) < 60 {
		t.Errorf("only %d metrics were compared", len(have))
	}
	suffix := regexp.MustCompile("_(bucket|sum|count)$")
	for _, m := range name.FindAllString(operations(t, "# Operations", "## Not yet"), -1) {
		if m = suffix.ReplaceAllString(m, ""); !have[m] && !strings.HasSuffix(m, "_") {
			t.Errorf("%s is spoken of and does not exist", m)
		}
	}
}

// TestFiguresMove plays with bots that lose packets: every figure that an http node
// publishes is announced by the role that it is about, and counts what happens there.
func TestFiguresMove(t *testing.T) {
	d := newDev(t, 8)
	d.opts.Loss, d.opts.Duration = 10, time.Minute
	still := map[string]bool{"Mesh_Retry": true} // nothing has to be sent again on loopback
	err := runAll(context.Background(), context.Background(), d.nodes, func(ctx context.Context) error {
		if err := d.awaitPlayable(ctx); err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(ctx)
		played := make(chan error, 1)
		go func() { played <- d.play(ctx) }()
		var missing []string
		for end := time.Now().Add(45 * time.Second); ; <-time.After(50 * time.Millisecond) {
			_, body := fetch(t, "http://"+d.nodes[1].adminAddr.String()+"/metrics/json")
			missing = missing[:0]
			for _, base := range httpapi.ClusterFigures {
				types := []string{"UDP", "TCP"}
				switch {
				case base == "Groups": // there are none yet
					continue
				case strings.HasPrefix(base, "UDP_"), base == "RUDP_Retries":
					types = types[:1]
				case strings.HasPrefix(base, "TCP_"):
					types = types[1:]
				}
				for _, typ := range types {
					want := fmt.Sprintf(`"%s_%s_node":\{"[^"]+":[1-9]`, base, typ)
					if still[base] {
						want = fmt.Sprintf(`"%s_%s_node":\{"[^"]+":\d`, base, typ)
					}
					if !regexp.MustCompile(want).MatchString(body) {
						missing = append(missing, base+"_"+typ)
					}
				}
			}
			if len(missing) == 0 || time.Now().After(end) {
				break
			}
		}
		cancel()
		if err := <-played; err != nil {
			t.Log(err) // that the bots were cut short is no fault
		}
		if len(missing) > 0 {
			t.Errorf("not announced, or 0 though there was traffic: %v", missing)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range d.nodes[2:] {
		for _, f := range n.figures() {
			if !slices.Contains(httpapi.ClusterFigures, f.name) {
				t.Errorf("%s: %s is announced and nobody publishes it", n.cfg.Role, f.name)
			}
		}
	}
}

// TestDocumentedFigures: the list in docs/operations.md is what udp and tcp nodes announce.
func TestDocumentedFigures(t *testing.T) {
	text := operations(t, `<Base>_<TYPE>_node{node="…"}`+"` with Base", "; for example")
	documented := regexp.MustCompile("`([A-Za-z_]+)`").FindAllStringSubmatch(text, -1)
	var names []string
	for _, m := range documented {
		names = append(names, m[1])
	}
	var want []string
	for _, f := range httpapi.ClusterFigures {
		if f != "Groups" { // there are none yet
			want = append(want, f)
		}
	}
	slices.Sort(names)
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("documented %v, published %v", names, want)
	}
}

// TestExitCodesAreDocumented: the table has every code there is, and no other.
func TestExitCodesAreDocumented(t *testing.T) {
	text := operations(t, "## Exit codes", "`health-check` has")
	codes := []int{ExitOK, ExitFailed, ExitNoNode, ExitUsage, ExitUnavailable, ExitInternal, ExitCreate, ExitPermission, ExitConfig}
	for _, code := range codes {
		if !strings.Contains(text, fmt.Sprintf("| %d | ", code)) {
			t.Errorf("exit code %d is not documented", code)
		}
	}
	if n := strings.Count(text, "\n| ") - 1; n != len(codes) {
		t.Errorf("%d exit codes are documented, want %d", n, len(codes))
	}
	if config.ExitConfig != ExitConfig || config.ExitUsage != ExitUsage {
		t.Error("one code has two numbers")
	}
}
