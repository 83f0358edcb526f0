package config

import "testing"

func TestDefaultsLoad(t *testing.T) {
	t.Chdir(t.TempDir())
	c, err := Load(Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range c.sections() {
		for _, f := range s.fields {
			if !c.IsDefault(s.name + "." + f.key) {
				t.Errorf("%s: key %s is missing or came from %q, want its default embedded", s.path, f.key, c.Source(s.name+"."+f.key))
			}
		}
	}
	if c.UDP.Port != 7100 || c.UDP.ConnectionTTL.Seconds() != 10 || c.Mesh.MARSAddress != "127.0.0.1" || c.UDP.PacketsBurst != 400 {
		t.Errorf("defaults = %+v", c)
	}
}
