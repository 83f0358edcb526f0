package marsnode

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m, u := c.role(1, "mars"), c.role(3, "udp")
		pass(3 * time.Second)
		if v := metric(t, m, "diarkis_mars_is_authority"); v != 1 {
			t.Errorf("is_authority = %v", v)
		}
		want := `
			# HELP diarkis_mars_members Members in this node's directory.
			# TYPE diarkis_mars_members gauge
			diarkis_mars_members{role="mars",state="online"} 1
			diarkis_mars_members{role="udp",state="online"} 1
		`
		if err := testutil.GatherAndCompare(u.reg, strings.NewReader(want), "diarkis_mars_members"); err != nil {
			t.Error(err)
		}
		if problems, err := testutil.GatherAndLint(u.reg); err != nil || len(problems) > 0 {
			t.Errorf("lint: %v, %v", problems, err)
		}
		u.kill()
		m.kill()
	})
}

// metric returns the sum of a metric over its labels.
func metric(t *testing.T, p *process, name string) (sum float64) {
	t.Helper()
	fams, err := p.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fams {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}
