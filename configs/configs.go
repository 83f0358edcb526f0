// Package configs holds the default settings that are built into the binary.
//
// Every key a file may have stands in these files with its default: copy one
// into a configuration directory and change what differs. Package
// internal/config says what each key means and which values it takes.
package configs

import "embed"

// Defaults holds one main.json per role and the files all roles share, under
// the paths they have in a configuration directory.
//
//go:embed mars/main.json http/main.json udp/main.json tcp/main.json shared/*.json
var Defaults embed.FS
