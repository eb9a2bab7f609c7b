package aclclient

import "strings"

// ShareCommand returns the command with which the owner of a topic gives somebody rights on it, for
// hints. who is the first of names, usernames or subjects, that a shell takes for one word; they may
// come from a server. rights are like "--read".
func ShareCommand(topic string, names []string, rights ...string) string {
	who := "YOUR_USERNAME"
	for _, name := range names {
		plain := !strings.ContainsFunc(name, func(r rune) bool { return notInWord(r) && r != '@' && r != '+' })
		if name != "" && plain && !strings.HasPrefix(name, "-") {
			who = name
			break
		}
	}
	return "diaspora topic share " + topic + " --with " + who + " " + strings.Join(rights, " ")
}
