package room

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
)

// However much the members of a large room have waiting when it is flushed, one step
// copies no more than a few milliseconds are worth, and everybody gets everything once.
func TestAFlushIsBounded(t *testing.T) {
	const members, attacker, copiesMax = 1000, 0, 3 << 20
	now := time.Unix(1_000_000, 0)
	m, err := NewMachine[id.UID](now, "room", Settings{MembersMax: members, EmptyTTL: time.Minute, Interval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	var out Output[id.UID]
	got := map[id.UID]int{} // bytes of messages
	step := func(in Input[id.UID]) {
		m.Step(now, in, &out)
		if out.Err != nil {
			t.Fatal(out.Err)
		}
		copies := 0
		for _, p := range out.Pushes {
			copies += len(p.Payload)
			for _, u := range p.To {
				got[u] += len(p.Payload)
			}
		}
		if copies > copiesMax {
			t.Fatalf("one step made %d MB of pushes", copies>>20)
		}
	}
	user := func(i int) id.UID { return id.UID(fmt.Sprintf("user%03d", i)) }
	for i := range members {
		step(Input[id.UID]{Op: OpJoin, User: user(i), Link: user(i)})
	}
	sent, own := 0, map[id.UID]int{}
	say := func(i, size int) {
		sent += size + 4
		own[user(i)] += size + 4
		step(Input[id.UID]{Op: OpBroadcast, User: user(i), Message: bytes.Repeat([]byte("x"), size), Rel: reliable.Reliable})
	}
	for i := 1; i < members; i++ {
		say(i, 20)
		if i%16 == 0 {
			say(attacker, 3000)
		}
		if i%250 == 0 {
			say(attacker, 60_000)
		}
	}
	now = now.Add(time.Second)
	step(Input[id.UID]{Op: OpTick})
	for i := range members {
		if u := user(i); got[u] != sent-own[u] {
			t.Fatalf("%s got %d bytes of %d", u, got[u], sent-own[u])
		}
	}
}

// BenchmarkMergedFlush is a room of 1,000 in which everybody says something in each
// interval.
func BenchmarkMergedFlush(b *testing.B) {
	const members = 1000
	now := time.Unix(1_000_000, 0)
	m, err := NewMachine[int](now, "room", Settings{MembersMax: members, EmptyTTL: time.Minute, Interval: 100 * time.Millisecond})
	if err != nil {
		b.Fatal(err)
	}
	var out Output[int]
	var users []id.UID
	for i := range members {
		users = append(users, id.UID(fmt.Sprint("user", i)))
		m.Step(now, Input[int]{Op: OpJoin, User: users[i], Link: i}, &out)
	}
	message := make([]byte, 64)
	var longest time.Duration
	for b.Loop() {
		for _, u := range users {
			start := time.Now()
			m.Step(now, Input[int]{Op: OpBroadcast, User: u, Message: message, Rel: reliable.Reliable}, &out)
			longest = max(longest, time.Since(start))
		}
		now = now.Add(time.Second)
		start := time.Now()
		m.Step(now, Input[int]{Op: OpTick}, &out)
		longest = max(longest, time.Since(start))
	}
	b.ReportMetric(float64(longest.Microseconds()), "µs/longest")
}
