package httpapi

// Routes are the paths of the API with the methods of each.
func (s *Server) Routes() map[string][]string {
	out := map[string][]string{}
	for _, r := range s.table() {
		out[r.pattern] = r.methods
	}
	return out
}
