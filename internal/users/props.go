package users

import "maps"

// Set stores a property. Values that shall survive a move to another node are
// nil, bool, string, []byte, the integer and float types, and slices and string
// maps of those; after the move numbers may have a wider type.
func (u *User) Set(key string, value any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.setLocked(key, value)
}

func (u *User) setLocked(key string, value any) {
	if u.props == nil {
		u.props = make(map[string]any)
	}
	u.props[key] = value
}

// Get returns a property and whether there is one.
func (u *User) Get(key string) (any, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	v, ok := u.props[key]
	return v, ok
}

// Update stores what f makes of a property: its value, or nil and false when there
// is none. f is called with the user's lock held, so that it must not block or call
// the user's methods.
func (u *User) Update(key string, f func(old any, ok bool) any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	old, ok := u.props[key]
	u.setLocked(key, f(old, ok))
}

// Delete removes a property and reports whether there was one.
func (u *User) Delete(key string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, ok := u.props[key]
	delete(u.props, key)
	return ok
}

// Properties returns a copy of all properties.
func (u *User) Properties() map[string]any {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.props)
}

// GetAs returns a property as a T: false when there is none, or one of another type.
func GetAs[T any](u *User, key string) (T, bool) {
	v, _ := u.Get(key)
	t, ok := v.(T)
	return t, ok
}
