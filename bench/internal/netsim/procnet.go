package netsim

import (
	"fmt"
	"strconv"
	"strings"
)

// txDropped reads a device's count of packets dropped while sending from the text
// of /proc/net/dev.
func txDropped(table, device string) (uint64, error) {
	const column = 11 // 8 of receiving, then bytes, packets, errs, drop
	for line := range strings.Lines(table) {
		name, rest, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) != device {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) <= column {
			return 0, fmt.Errorf("device %s: %d columns", device, len(fields))
		}
		return strconv.ParseUint(fields[column], 10, 64)
	}
	return 0, fmt.Errorf("no device %s", device)
}
