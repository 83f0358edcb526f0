module github.com/Diarkis/diarkis/bench

go 1.26.0

replace github.com/Diarkis/diarkis => ../

require golang.org/x/sys v0.49.0
