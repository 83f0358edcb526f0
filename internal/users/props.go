package users

import (
	"fmt"
	"maps"

	"github.com/Diarkis/diarkis/internal/mesh"
)

// properties are values, or what they were encoded as for as long as nobody has
// looked at one: decoded, a few bytes can take a thousand times their size.
type properties struct {
	encoded []byte // a MessagePack map within the limits of the mesh; nil once decoded
	values  map[string]any
}

// open returns the values, which may be nil.
func (p *properties) open() map[string]any {
	if p.encoded == nil {
		return p.values
	}
	b := p.encoded
	p.encoded = nil
	// It can't fail for what mesh.CheckMap let pass. If it does, there are none.
	p.values, _ = mesh.DecodeMap(b)
	return p.values
}

func (p *properties) set(key string, value any) {
	if p.open() == nil {
		p.values = make(map[string]any)
	}
	p.values[key] = value
}

// marshal encodes the properties for the mesh; nil for none. They stay as they are.
func (p *properties) marshal() ([]byte, error) {
	b := p.encoded
	if len(p.values) > 0 {
		var err error
		if b, err = mesh.EncodeMap(p.values); err != nil {
			return nil, fmt.Errorf("properties: %w", err)
		}
	}
	if len(b) > movePropsMax {
		return nil, fmt.Errorf("properties take %d bytes, at most %d fit", len(b), movePropsMax)
	}
	return b, nil
}

// Set stores a property. Values that shall survive a move to another node are
// nil, bool, string, []byte, the integer and float types, and slices and string
// maps of those; after the move numbers may have a wider type.
func (u *User) Set(key string, value any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.props.set(key, value)
}

// Get returns a property and whether there is one.
func (u *User) Get(key string) (any, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	v, ok := u.props.open()[key]
	return v, ok
}

// Update stores what f makes of a property: its value, or nil and false when there
// is none. f is called with the user's lock held, so that it must not block or call
// the user's methods.
func (u *User) Update(key string, f func(old any, ok bool) any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	old, ok := u.props.open()[key]
	u.props.set(key, f(old, ok))
}

// Delete removes a property and reports whether there was one.
func (u *User) Delete(key string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	values := u.props.open()
	_, ok := values[key]
	delete(values, key)
	return ok
}

// Properties returns a copy of all properties.
func (u *User) Properties() map[string]any {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.props.open())
}

// GetAs returns a property as a T: false when there is none, or one of another type.
func GetAs[T any](u *User, key string) (T, bool) {
	v, _ := u.Get(key)
	t, ok := v.(T)
	return t, ok
}
