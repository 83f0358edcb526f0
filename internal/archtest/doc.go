// Package archtest holds the structure of the project to what docs/architecture.md
// says of it: imports only point down the floors, the lowest floors are pure, and
// every package says what it is for. It has tests only.
package archtest
