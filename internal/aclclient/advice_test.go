package aclclient

import "testing"

// TestShareCommand checks that a username from a server is named in a command only if a shell takes it for one word.
func TestShareCommand(t *testing.T) {
	for _, tt := range []struct {
		names []string
		want  string
	}{
		{[]string{"ada@example.edu", "1168fe43"}, "ada@example.edu"},
		{[]string{"ada+lab@example.edu"}, "ada+lab@example.edu"},
		{[]string{"ada; rm -rf @x", "1168fe43"}, "1168fe43"},
		{[]string{"--public", "1168fe43"}, "1168fe43"},
		{[]string{"ada`id`@x", ""}, "YOUR_USERNAME"},
		{nil, "YOUR_USERNAME"},
	} {
		want := "diaspora topic share weather --with " + tt.want + " --read --write"
		if got := ShareCommand("weather", tt.names, "--read", "--write"); got != want {
			t.Errorf("ShareCommand(%q) = %q, want %q", tt.names, got, want)
		}
	}
}
