package status_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/Diarkis/diarkis/internal/status"
)

func TestOf(t *testing.T) {
	full := &status.Error{Code: status.RoomJoin, Retry: true, Text: "room is full"}
	if got := status.Of(fmt.Errorf("join room r: %w", full)); got != full || got.Byte() != status.Bad {
		t.Errorf("Of(wrapped) = %v with byte %d", got, got.Byte())
	}
	got := status.Of(errors.New("open /etc/x: no"))
	if got.Code != status.Internal || got.Byte() != status.Err || got.Text != "internal error" {
		t.Errorf("Of(plain) = %+v: must hide the text", got)
	}
	if status.Of(nil) != nil {
		t.Error("Of(nil) is not nil")
	}
	if p := string(full.AppendTo(nil)); p != "\x00\x00\x07\xd2room is full" {
		t.Errorf("payload = %q", p)
	}
}
