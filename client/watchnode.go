package client

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"time"
)

const (
	nodeAskAfter = time.Second     // of a resume without an answer, before the HTTP role is asked
	nodeAskEvery = 2 * time.Second // between two questions
	nodeAskFor   = 2 * time.Second // for one
	nodeBytesMax = 1 << 10         // the longest answer that is read
)

// watchNode asks the HTTP role about the node while the attempt gets no answer there, and
// ends the attempt when the node is gone: the state went with it, unless another has it
// since a move. That one is asked all the time, and has one handshake's time more: it can't
// get the user any more from a node that is gone.
func (c *Client) watchNode(ctx context.Context, a *attempt, token string, moved bool) {
	for wait := nodeAskAfter; pause(ctx, wait); wait = nodeAskEvery {
		if !c.nodeGone(ctx, token) || moved && !pause(ctx, c.opts.HandshakeTimeout) {
			continue
		}
		c.mu.Lock()
		answers := time.Since(a.alive) < c.opts.HandshakeTimeout
		c.mu.Unlock()
		if !answers { // who answered a Hello just now has the keys of our place, whatever the role knows
			a.cancel(errGone)
			return
		}
	}
}

// nodeGone reports whether the HTTP role says that the run of a node is over. Any other
// answer, or none, tells nothing: an older role doesn't know the question, and one that
// has no current directory doesn't know the answer. It takes no key and no ticket along.
func (c *Client) nodeGone(ctx context.Context, token string) bool {
	u, err := url.Parse(c.opts.URL)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, nodeAskFor)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.JoinPath("node", segment(token)).String(), nil)
	if err != nil {
		return false
	}
	resp, err := staying(c.opts.HTTP).Do(r)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, nodeBytesMax+1))
	if err != nil || resp.StatusCode != http.StatusOK || len(b) > nodeBytesMax {
		return false
	}
	var answer struct {
		State string `json:"state"`
	}
	return json.Unmarshal(b, &answer) == nil && answer.State == "gone"
}
