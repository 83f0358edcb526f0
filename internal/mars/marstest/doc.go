// Package marstest plays whole clusters of mars machines in one goroutine.
//
// A [Cluster] owns processes, each with a [mars.Machine] and a clock of its own, a
// network between them and a heap of what happens when. Everything random comes
// from one seed, so the same seed always gives the same history. While faults of
// all kinds are at work the safety rules of succession are checked at every step
// (see the check files, one rule to a function); after the faults stop the cluster
// has to find back together. [Play] runs one history by its [Options]; the command
// marssim runs many of them.
//
// A history that breaks a rule is played a second time with everything written
// down, because writing is what would make the many good ones slow.
package marstest
