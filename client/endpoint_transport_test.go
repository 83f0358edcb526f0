package client

import "testing"

// TestEndpointTransport: what a node speaks is said by the answer; the type, a free label,
// is asked only when it is not.
func TestEndpointTransport(t *testing.T) {
	for _, tc := range []struct {
		typ, transport string
		want           Transport
	}{
		{"LOWT", "tcp", TCP}, {"UDP-IN-NAME-ONLY", "tcp", TCP}, {"TCP", "udp", UDP}, {"RANKED", "udp", UDP},
		{"TCP", "", TCP}, {"MYTCP", "", TCP}, {"RANKED", "", UDP}, {"TCP", "sctp", TCP},
	} {
		if got := (Endpoint{ServerType: tc.typ, Transport: tc.transport}).transport(); got != tc.want {
			t.Errorf("type %q, transport %q: %v, want %v", tc.typ, tc.transport, got, tc.want)
		}
	}
}
