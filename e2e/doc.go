// Package e2e starts the real binary as separate processes, each with a run directory
// of its own, plays on the cluster and breaks it. Most clusters are on loopback; where
// the network is to break, each node has a network namespace (see lan). It has tests only.
//
// A test waits for conditions (a log line, a state that a node reports, a message
// that arrives), never for a time; how long it waits at most is generous, so that a
// slow machine is slow and not red.
package e2e
