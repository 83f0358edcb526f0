package servers

import "strconv"

// The server and the load generator of ENet are one C program.
const (
	enetSource = "enet.c"
	loadENet   = enetSource
)

func enetArgs(a loadArgs) []string {
	return []string{
		"load", strconv.Itoa(int(a.Server.Port())), strconv.Itoa(a.PID), strconv.Itoa(a.Clients), strconv.Itoa(a.Bytes),
		strconv.FormatInt(a.WarmUp.Milliseconds(), 10), strconv.FormatInt(a.Window.Milliseconds(), 10),
	}
}
