package reliable

// Asked reports whether the peer was asked for an answer since it was heard last, so that
// its silence will tell something: see [Machine.Unanswered].
func (m *Machine) Asked() bool { return m.asked != never }
