//go:build !race

package transport

// garbageMax is how many allocations a hundred echoes may make.
const garbageMax = 1
