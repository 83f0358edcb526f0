//go:build !linux

package main

// onLinux are the suites that need what only Linux has.
var onLinux []suite
