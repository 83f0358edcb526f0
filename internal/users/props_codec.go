package users

import (
	"errors"
	"fmt"

	"github.com/Diarkis/diarkis/internal/mesh"
)

// The limits of the properties a user starts with. Whoever may ask for a place may
// send some, so they are small, and hold on the node that asks and on the node asked.
const (
	PropsBytesMax   = 64 << 10 // encoded
	PropsEntriesMax = 256      // elements of all maps and arrays together
	PropsDepthMax   = 8        // levels of maps and arrays, the outer map included
)

// Why properties are no user's first ones. The asker is at fault, not a node.
var (
	// ErrPropsLarge means more than [PropsEntriesMax] entries or [PropsBytesMax] bytes.
	ErrPropsLarge = errors.New("properties are too large")
	// ErrPropsDeep means nested over [PropsDepthMax] levels.
	ErrPropsDeep = errors.New("properties are nested too deep")
)

// EncodeProps encodes the properties a user starts with, for [ReserveRequest]: nil for
// none. It returns [ErrPropsLarge] or [ErrPropsDeep] for what is over a limit, found
// before anything is encoded, and another error for a value without a MessagePack form.
func EncodeProps(props map[string]any) ([]byte, error) {
	if len(props) == 0 {
		return nil, nil
	}
	left := PropsEntriesMax
	if err := checkShape(props, &left, PropsDepthMax); err != nil {
		return nil, err
	}
	b, err := mesh.EncodeMap(props)
	if err != nil {
		return nil, fmt.Errorf("properties: %w", err)
	}
	return b, checkProps(b)
}

// checkShape looks at what is not encoded yet: left is how many more entries there may
// be, depth how many more levels.
func checkShape(v any, left *int, depth int) error {
	size := 0
	switch v := v.(type) {
	case map[string]any:
		size = len(v)
	case []any:
		size = len(v)
	default:
		return nil
	}
	if depth == 0 {
		return tooDeep()
	}
	if *left -= size; *left < 0 {
		return tooMany()
	}
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			if err := checkShape(e, left, depth-1); err != nil {
				return err
			}
		}
	case []any:
		for _, e := range v {
			if err := checkShape(e, left, depth-1); err != nil {
				return err
			}
		}
	}
	return nil
}

func tooDeep() error { return fmt.Errorf("%w: at most %d levels", ErrPropsDeep, PropsDepthMax) }

func tooMany() error { return fmt.Errorf("%w: at most %d entries", ErrPropsLarge, PropsEntriesMax) }

// checkProps holds encoded first properties against their limits without decoding
// them, because a few bytes can claim to be, or become, very many.
func checkProps(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if len(b) > PropsBytesMax {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrPropsLarge, len(b), PropsBytesMax)
	}
	err := mesh.CheckMap(b, mesh.MapLimits{Depth: PropsDepthMax, Entries: PropsEntriesMax})
	switch {
	case errors.Is(err, mesh.ErrMapDeep):
		return tooDeep()
	case errors.Is(err, mesh.ErrMapEntries):
		return tooMany()
	case err != nil:
		return fmt.Errorf("properties: %w", err)
	}
	return nil
}

// checkMoveProps holds the properties of a user who moves against the limits of the mesh:
// the application set them.
func checkMoveProps(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if err := mesh.CheckMap(b, mesh.MapLimits{Depth: mesh.MapDepthMax, Entries: mesh.MapEntriesMax}); err != nil {
		return fmt.Errorf("properties: %w", err)
	}
	return nil
}
