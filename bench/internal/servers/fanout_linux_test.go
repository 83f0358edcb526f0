package servers

import (
	"testing"
	"time"
)

func TestPlainMembersSendAsManyAcks(t *testing.T) {
	for _, acks := range []bool{false, true} {
		p := plainMember{acks: acks, got: make([]int, 2)}
		sent := 0
		for range 10 {
			if p.ack(time.Now(), 1, nil) != nil {
				sent++
			}
		}
		want := 0
		if acks {
			want = 5
		}
		if sent != want {
			t.Errorf("acks %v: %d after 10 packets, want %d", acks, sent, want)
		}
	}
}

func TestRoomID(t *testing.T) {
	rid := make([]byte, roomIDBytes)
	rid[0] = 'r'
	good := append([]byte{1, 1, 0, 106, 1, 0, 0, 0, 0, 9}, rid...) // response, ver, cmd, ok, created, when
	if got, err := roomID(good); err != nil || string(got) != string(rid) {
		t.Errorf("room id %q, %v", got, err)
	}
	refused := append([]byte(nil), good...)
	refused[4] = 4
	for _, bad := range [][]byte{nil, refused, good[:20]} {
		if _, err := roomID(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestProgramsAreThere(t *testing.T) {
	all := Programs()
	for _, name := range []string{"ours-echo", "load-dx1", "load-plain", "idle-dx1"} {
		if all[name] == nil {
			t.Errorf("there is no program %q", name)
		}
	}
}
