package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/diaspora-streams/diaspora/internal/manual"
)

var referenceMarkdownHelp = help{
	use:   "markdown FOLDER",
	short: "write the reference as Markdown",
	examples: `
diaspora reference markdown docs/reference`,
	long: `
There is a page for each command of the top level, with its subcommands, and pages for the
environment variables and the exit codes. Files of the same names are replaced.`,
	args: arguments{min: 1, max: 1, missing: "the folder is missing"},
}

var referenceManHelp = help{
	use:   "man FOLDER",
	short: "write man pages into the folders man1 and man5 of FOLDER",
	examples: `
diaspora reference man /usr/local/share/man`,
	long: `
There is a page for each command, and one for the file with the settings of the service. Files of
the same names are replaced.`,
	args: arguments{min: 1, max: 1, missing: "the folder is missing"},
}

// referenceCommand is for building packages and the documentation, so the help does not list it.
func (e *env) referenceCommand() *cobra.Command {
	var reference *cobra.Command
	markdown := e.command(referenceMarkdownHelp, func(_ context.Context, args []string) error {
		return e.writeReference(args[0], markdownReference(reference.Root()))
	})
	man := e.command(referenceManHelp, func(_ context.Context, args []string) error {
		return e.writeReference(args[0], manPages(reference.Root(), "diaspora "+programVersion()))
	})
	reference = group("reference", "write the help of all commands into files", markdown, man)
	reference.Hidden, markdown.Hidden, man.Hidden = true, true, true
	return reference
}

// writeReference writes pages into a folder.
func (e *env) writeReference(folder string, pages map[string]string) error {
	for name, text := range pages {
		file := filepath.Join(folder, name)
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		if err == nil {
			err = os.WriteFile(file, []byte(text), 0o644)
		}
		if err != nil {
			return fmt.Errorf("reference: %w", err)
		}
	}
	return e.answer(map[string]any{"folder": folder, "files": len(pages)}, "%s in %s\n", count(len(pages), "file"), folder)
}

// Names of the columns of lists of flags, variables and exit codes.
var (
	flagHead     = [2]string{"flag", "meaning"}
	variableHead = [2]string{"variable", "meaning"}
	codeHead     = [2]string{"code", "meaning"}
	settingHead  = [2]string{"setting", "meaning"}
	commandHead  = [2]string{"command", "what it does"}
)

// listed are the commands below a command that the help lists.
func listed(cmd *cobra.Command) (below []*cobra.Command) {
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" {
			below = append(below, c)
		}
	}
	return below
}

// commandPage returns the page of a command, without its subcommands. On a man page, the sections have the usual order.
// Elsewhere, examples come first, as in the help.
func commandPage(cmd *cobra.Command, man bool) manual.Page {
	usage := manual.Section{Blocks: []manual.Block{manual.ParseCode(cmd.UseLine())}}
	text := manual.Section{Heading: "Description", Blocks: manual.Parse(cmd.Long)}
	examples := manual.Section{Heading: "Examples"}
	if cmd.Example != "" {
		examples.Blocks = []manual.Block{manual.ParseCode(cmd.Example)}
	}
	commands := manual.Section{Heading: "Commands"}
	if below := listed(cmd); len(below) > 0 {
		list := manual.Block{Head: commandHead}
		for _, c := range below {
			list.Definitions = append(list.Definitions, manual.Definition{Term: c.Name(), Text: c.Short})
		}
		commands.Blocks = []manual.Block{list}
	}
	flags := manual.Section{Heading: "Flags"}
	if own := ownFlags(cmd); own.HasAvailableFlags() {
		flags.Blocks = []manual.Block{manual.ParseDefinitions(own.FlagUsages(), flagHead)}
	}
	order := []manual.Section{usage, text, commands, flags, examples}
	if !man {
		examples.Heading, text.Heading = "", ""
		order = []manual.Section{usage, examples, text, commands, flags}
	}
	p := manual.Page{Name: cmd.CommandPath(), Section: "1", Short: cmd.Short}
	for _, s := range order {
		if len(s.Blocks) > 0 {
			p.Sections = append(p.Sections, s)
		}
	}
	return p
}

// ownFlags returns the flags of a command, without those of all commands and --help.
func ownFlags(cmd *cobra.Command) *pflag.FlagSet {
	own := pflag.NewFlagSet("", pflag.ContinueOnError)
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" {
			own.AddFlag(f)
		}
	})
	return own
}

// commonFlags describes the flags of all commands.
func commonFlags(root *cobra.Command) manual.Block {
	return manual.ParseDefinitions(root.PersistentFlags().FlagUsages()+"  -h, --help   show the help of the command\n", flagHead)
}

// withHead gives the lists of definitions in a text the names of their columns.
func withHead(blocks []manual.Block, head [2]string) []manual.Block {
	for i := range blocks {
		if len(blocks[i].Definitions) > 0 {
			blocks[i].Head = head
		}
	}
	return blocks
}

func topicPage(name, short, text string, head [2]string) manual.Page {
	return manual.Page{Name: name, Short: short, Sections: []manual.Section{{Blocks: withHead(manual.Parse(text), head)}}}
}

// generated is at the end of each Markdown page.
const generated = "\n<!-- Written by \"make reference\" from the help texts in cmd/diaspora. -->\n"

// markdownReference returns the pages of docs/reference by name.
func markdownReference(root *cobra.Command) map[string]string {
	files := map[string]string{
		"environment.md": topicPage("Environment variables", `"diaspora help environment" shows this page.`, environmentHelp, variableHead).Markdown(1),
		"exit-codes.md":  topicPage("Exit codes", `"diaspora help exit-codes" shows this page.`, exitCodesHelp(), codeHead).Markdown(1),
	}
	var index strings.Builder
	index.WriteString("# Reference\n\n`diaspora COMMAND --help` shows the same text. `diaspora reference man FOLDER` writes it as man pages.\n\n| command | what it does |\n| --- | --- |\n")
	for _, cmd := range listed(root) {
		text := commandPage(cmd, false).Markdown(1)
		for _, below := range listed(cmd) {
			text += "\n" + commandPage(below, false).Markdown(2)
		}
		files[cmd.Name()+".md"] = text
		fmt.Fprintf(&index, "| [%s](%s.md) | %s |\n", cmd.CommandPath(), cmd.Name(), cmd.Short)
	}
	all := manual.Page{Name: "Flags of all commands", Sections: []manual.Section{{Blocks: []manual.Block{commonFlags(root)}}}}
	index.WriteString("\n" + all.Markdown(2))
	index.WriteString("\n## Further\n\n- [Environment variables](environment.md)\n- [Exit codes](exit-codes.md)\n- [Settings of the service](serve.md#flags)\n")
	files["README.md"] = index.String()
	for name := range files {
		files[name] += generated
	}
	return files
}

// manPages returns the man pages by name: "man1/diaspora-produce.1".
func manPages(root *cobra.Command, version string) map[string]string {
	files := map[string]string{}
	put := func(p manual.Page, related []string) {
		slices.Sort(related)
		p.Sections = append(p.Sections, manual.Section{Heading: "See also", Blocks: []manual.Block{{Text: strings.Join(related, ", ")}}})
		files[fmt.Sprintf("man%s/%s.%[1]s", p.Section, p.ManName())] = p.Man(version)
	}
	reference := func(cmd *cobra.Command) string { return manual.Page{Name: cmd.CommandPath()}.ManName() + "(1)" }
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		p, related := commandPage(cmd, true), []string(nil)
		if cmd.HasParent() {
			related = append(related, reference(cmd.Parent()))
		} else {
			p.Sections = append(p.Sections,
				manual.Section{Heading: "Flags of all commands", Blocks: []manual.Block{commonFlags(root)}},
				manual.Section{Heading: "Environment", Blocks: manual.Parse(environmentHelp)},
				manual.Section{Heading: "Exit status", Blocks: manual.Parse(exitCodesHelp())})
		}
		for _, c := range listed(cmd) {
			related = append(related, reference(c))
			visit(c)
		}
		if cmd.Name() == "serve" {
			related = append(related, "diaspora-serve.toml(5)")
		}
		put(p, related)
	}
	visit(root)
	put(settingsPage(), []string{"diaspora-serve(1)"})
	return files
}

// settingsPage describes the file with the settings of "diaspora serve".
func settingsPage() manual.Page {
	settings := manual.Block{Head: settingHead}
	for _, s := range serveSettings {
		// pflag takes the name of the value from the usage.
		value, usage := pflag.UnquoteUsage(&pflag.Flag{Usage: s.usage})
		settings.Definitions = append(settings.Definitions, manual.Definition{Term: s.name + " = " + cmp.Or(value, "VALUE"), Text: usage})
	}
	return manual.Page{Name: "diaspora-serve.toml", Section: "5", Short: "settings of the gateway and the ACL endpoint", Sections: []manual.Section{
		{Blocks: []manual.Block{manual.ParseCode(serveSettingsFile)}},
		{Heading: "Description", Blocks: manual.Parse(`"diaspora serve" reads this file, which is TOML. Text is in quotes; numbers, true and false are not. A list is an array, or
text with commas. "diaspora serve --check" reports what is wrong with the settings.`)},
		{Heading: "Settings", Blocks: []manual.Block{settings}},
	}}
}
