package main

import (
	"fmt"
	"strconv"

	"github.com/Diarkis/diarkis/internal/bot"
)

// lossFlag is --loss, refused where it is read: before a cluster starts for nothing.
type lossFlag struct{ percent *float64 }

func (f lossFlag) String() string {
	if f.percent == nil {
		return "0"
	}
	return strconv.FormatFloat(*f.percent, 'g', -1, 64)
}

func (f lossFlag) Set(s string) error {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || !(v >= 0 && v <= bot.LossMax) {
		return fmt.Errorf("must be 0 to %d percent", bot.LossMax)
	}
	*f.percent = v
	return nil
}

func (lossFlag) Type() string { return "percent" }
