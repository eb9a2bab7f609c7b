package main

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// TestHelpTopics shows every topic, and checks that "diaspora help" lists it and that shells complete it.
func TestHelpTopics(t *testing.T) {
	t.Parallel()
	d := emptyDesk(t)
	d.must(t, "help")
	list := d.out.String()
	d.out.Reset()
	d.must(t, "__complete", "help", "")
	completed := d.out.String()
	topics := 0
	for _, cmd := range d.commands().Commands() {
		if !cmd.IsAdditionalHelpTopicCommand() {
			continue
		}
		topics++
		if !strings.Contains(list, "\n  "+cmd.Name()+" ") || !strings.Contains(completed, cmd.Name()+"\t"+cmd.Short) {
			t.Errorf("%s is not in the list, or not completed:\n%s\n%s", cmd.Name(), list, completed)
		}
		d.out.Reset()
		d.must(t, "help", cmd.Name())
		if text := d.out.String(); len(text) < 500 || strings.Contains(text, "Usage:") {
			t.Errorf("help %s prints\n%s", cmd.Name(), text)
		}
	}
	if topics < 2+len(pageTopics) {
		t.Errorf("%d topics", topics)
	}
	if strings.Contains(list, "reference") {
		t.Errorf("the list has the hidden command:\n%s", list)
	}
}

// TestHelpFitsTheTerminal checks that a page is set in lines of the terminal's width, and that links name other topics.
func TestHelpFitsTheTerminal(t *testing.T) {
	t.Parallel()
	for columns, most := range map[int]int{0: helpColumns, 60: 60, 20: 40, 500: helpColumns} {
		d := emptyDesk(t)
		d.columns = func(any) int { return columns }
		d.must(t, "help", "errors")
		longest := 0
		for line := range strings.Lines(d.out.String()) {
			if strings.HasPrefix(line, "      ") {
				continue // code may be longer
			}
			longest = max(longest, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")))
		}
		if longest > most || longest < most-15 {
			t.Errorf("on a terminal of %d columns, the longest line has %d, want %d", columns, longest, most)
		}
	}
	d := emptyDesk(t)
	d.must(t, "help", "guide")
	if text := d.out.String(); !strings.Contains(text, "diaspora help sharing") || strings.Contains(text, "](") {
		t.Errorf("the guide does not refer to the topic sharing:\n%s", text)
	}
}

// TestNoSuchHelp checks what "diaspora help" says about names that it does not know.
func TestNoSuchHelp(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"enviroment":        `did you mean "diaspora help environment"?`,
		"exit-code":         `did you mean "diaspora help exit-codes"?`,
		"prodce":            `did you mean "diaspora help produce"?`,
		"instruments.md":    `"diaspora help instruments" shows this page`,
		"tutorial-operator": `"diaspora help operator" shows this page`,
		"share":             `did you mean "diaspora topic share"?`,
		"zzzzzzz":           `"diaspora help" lists the commands and topics`,
		"topic clam":        `did you mean "diaspora topic claim"?`,
	} {
		d := emptyDesk(t)
		code := d.types(t.Context(), append([]string{"help"}, strings.Fields(name)...)...)
		if code != 2 || !strings.Contains(d.err.String(), "hint: "+want) || d.out.String() != "" {
			t.Errorf("help %s exits with %d and says\n%s%s", name, code, d.out.String(), d.err.String())
		}
	}
}
