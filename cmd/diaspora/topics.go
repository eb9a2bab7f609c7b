package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora/docs"
	"github.com/diaspora-streams/diaspora/internal/doctor"
	"github.com/diaspora-streams/diaspora/internal/manual"
	"github.com/diaspora-streams/diaspora/internal/outcome"
)

// pageTopics are the pages of the documentation that "diaspora help" shows. Their names differ from those of commands
// that people guess, such as "diaspora share".
var pageTopics = []struct{ name, short, file string }{
	{"guide", "every step from signing in to reading events", "guide.md"},
	{"sharing", "share topics, change their settings, hand them over", "share.md"},
	{"instruments", "log the files of an instrument, monitor it, check that all files have arrived", "instruments.md"},
	{"batch", "log from a Slurm array, find out which tasks are complete", "batch.md"},
	{"clients", "access keys, and settings for other Kafka clients", "clients.md"},
	{"checks", "the checks of \"diaspora doctor\", and what to do if one fails", "doctor.md"},
	{"errors", "how errors of the cluster are handled, and tokens that are not sent", "errors.md"},
	{"operator", "try out operating a fabric, on one machine", "tutorial-operator.md"},
	{"server", "run a fabric for a small group on one server", "one-server.md"},
	{"production", "run the service in front of Apache Kafka", "operate.md"},
}

// topicOfPage returns the topic of a page, or "".
func topicOfPage(file string) string {
	for _, p := range pageTopics {
		if p.file == file {
			return p.name
		}
	}
	return ""
}

// helpTopics are the help texts that do not belong to one command.
func (e *env) helpTopics() []*cobra.Command {
	topics := []*cobra.Command{
		{Use: "environment", Short: "environment variables that the commands read", Long: environmentHelp},
		{Use: "exit-codes", Short: "what the exit codes mean", Long: exitCodesHelp()},
	}
	for _, p := range pageTopics {
		cmd := &cobra.Command{Use: p.name, Short: p.short}
		cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) { e.showPage(cmd.OutOrStdout(), p.file) })
		topics = append(topics, cmd)
	}
	return topics
}

// exitCodesHelp is "diaspora help exit-codes".
func exitCodesHelp() string {
	text := "The exit code of a command says whether it failed, and why:\n"
	for _, c := range outcome.ExitCodes {
		text += manual.Fill(fmt.Sprintf("  %-5d", c.Code), c.Meaning, helpColumns)
	}
	return text + "\nThe error on stderr says more. With -o json, it is one line of JSON, with the exit code in it."
}

// helpColumns is the width of help texts.
const helpColumns = 100

// showPage prints a page of the documentation, in lines that fit the terminal.
func (e *env) showPage(out io.Writer, file string) {
	page, err := docs.Pages.ReadFile(file)
	if err != nil {
		panic(err) // the page is not in the binary, and a test shows every page
	}
	width := helpColumns
	if columns := e.columns(e.stdout); columns > 0 {
		width = max(40, min(columns, helpColumns))
	}
	_, _ = io.WriteString(out, manual.Terminal(string(page), width, topicOfPage)) // helpOutput reports what can be reported
}

// noHelp returns the error of "diaspora help" for something that is neither a command nor a topic.
func noHelp(root *cobra.Command, wanted string) error {
	var names []string
	for _, c := range root.Commands() {
		names = append(names, c.Name())
	}
	hint := `"diaspora help" lists the commands and topics`
	if topic := topicOfPage(strings.TrimSuffix(wanted, ".md") + ".md"); topic != "" {
		hint = fmt.Sprintf(`"diaspora help %s" shows this page`, topic)
	} else if near := doctor.Near(wanted, names); near != "" {
		hint = fmt.Sprintf(`did you mean "diaspora help %s"?`, near)
	}
	return misuse(hint, "help: there is no command or topic %q", wanted)
}
