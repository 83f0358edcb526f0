package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/Diarkis/diarkis/internal/lifecycle"
)

// What mars status prints for people.
func TestPrintMARS(t *testing.T) {
	age, none := int64(2300), int64(0)
	for _, c := range []struct {
		name   string
		status lifecycle.MARSStatus
		want   []string
		not    []string
	}{
		{"nothing is known", lifecycle.MARSStatus{Role: "udp", PID: 7, Node: "10.0.0.7:8000"},
			[]string{"none known", "epoch      none yet", "voters     none known", "members    none known"}, []string{"NODE", "0:"}},
		{"an authority that has not been heard just now", lifecycle.MARSStatus{Authority: "10.0.0.1:6779", AuthorityRole: "mars", Live: true, AuthorityAgeMS: &age, Epoch: "1.2/a", Voters: []string{"10.0.0.1:6779"},
			Members: []lifecycle.MARSMember{{Node: "10.0.0.1:6779", Role: "mars"}}},
			[]string{"10.0.0.1:6779 (mars), last heard 2.3s ago", "epoch      1.2/a", "voters     1: 10.0.0.1:6779", "NODE"}, nil},
		{"one that is silent", lifecycle.MARSStatus{Authority: "10.0.0.1:6779", AuthorityRole: "mars", AuthorityAgeMS: &age}, []string{"silent at the moment, last heard 2.3s ago"}, nil},
		{"itself", lifecycle.MARSStatus{Authority: "10.0.0.1:6779", AuthorityRole: "mars", Live: true, Reigns: true, AuthorityAgeMS: &none}, []string{"(mars), this node\n"}, []string{"last heard"}},
	} {
		var b bytes.Buffer
		if err := printMARS(&b, &c.status); err != nil {
			t.Fatal(err)
		}
		for _, want := range c.want {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s: no %q in\n%s", c.name, want, &b)
			}
		}
		for _, not := range c.not {
			if strings.Contains(b.String(), not) {
				t.Errorf("%s: %q is in\n%s", c.name, not, &b)
			}
		}
	}
}

// Every exit code that a command may have is in its help.
func TestHelpNamesExitCodes(t *testing.T) {
	for args, codes := range map[string][]string{
		"task --help":         {" 0 ", " 1 ", " 3 ", " 64 ", " 73 ", " 77 "},
		"config check --help": {" 0 ", " 64 ", "\n69 ", " 73 ", " 77 ", " 78 "},
		"mars status --help":  {" 0 ", " 1 ", " 3 "},
		"--version":           {lifecycle.BuildText(commit)},
		"version":             {lifecycle.BuildText(commit)},
	} {
		var b bytes.Buffer
		root := rootCommand()
		root.SetOut(&b)
		root.SetArgs(strings.Fields(args))
		if err := root.Execute(); err != nil {
			t.Errorf("%s: %v", args, err)
		}
		for _, code := range codes {
			if !strings.Contains(b.String(), code) {
				t.Errorf("%s does not say %q:\n%s", args, code, &b)
			}
		}
	}
}
