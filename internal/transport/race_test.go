//go:build race

package transport

// The race detector has sync.Pool forget things at random, to find who relies on it.
const garbageMax = 200
