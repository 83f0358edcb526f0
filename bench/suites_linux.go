package main

import "github.com/Diarkis/diarkis/bench/internal/servers"

// onLinux are the suites that need what only Linux has.
var onLinux = []suite{{servers.Benches, servers.Programs}}
