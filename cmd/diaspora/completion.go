package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

var completionHelp = help{
	use:   "completion SHELL",
	short: "print a script that completes commands and topics in your shell",
	examples: `
# bash, for this session and for all later ones
source <(diaspora completion bash)
echo 'source <(diaspora completion bash)' >> ~/.bashrc

# zsh
diaspora completion zsh > "${fpath[1]}/_diaspora"

# fish
diaspora completion fish > ~/.config/fish/completions/diaspora.fish`,
	long: `SHELL is one of bash, zsh, fish, powershell.`,
	args: arguments{min: 1, max: 1, missing: "name the shell: bash, zsh, fish or powershell"},
}

// Cobra's bash script needs the bash-completion package to split the line up to the cursor into words. The
// replacement also works without that package. It cannot use bash's own words, which are split at = and : too.
const (
	bashWordsByPackage = `    _get_comp_words_by_ref "$@" cur prev words cword
`
	bashWords = `    if declare -F _get_comp_words_by_ref >/dev/null 2>&1; then
        _get_comp_words_by_ref "$@" cur prev words cword
        return
    fi
    local line="${COMP_LINE:0:COMP_POINT}"
    read -r -a words <<< "$line"
    if [[ -z $line || $line == *[[:space:]] ]]; then
        words+=("")
    fi
    cword=$((${#words[@]} - 1))
    cur="${words[cword]}"
    prev=""
    if ((cword > 0)); then
        prev="${words[cword-1]}"
    fi
`
)

func (e *env) completionCommand() *cobra.Command {
	var cmd *cobra.Command
	cmd = e.command(completionHelp, func(_ context.Context, args []string) error {
		script := new(bytes.Buffer)
		root, err := cmd.Root(), error(nil)
		switch args[0] {
		case "bash":
			if err = root.GenBashCompletionV2(script, true); err == nil {
				script = bytes.NewBufferString(strings.Replace(script.String(), bashWordsByPackage, bashWords, 1))
			}
		case "zsh":
			err = root.GenZshCompletion(script)
		case "fish":
			err = root.GenFishCompletion(script, true)
		case "powershell":
			err = root.GenPowerShellCompletionWithDesc(script)
		default:
			return misuse("", "completion: %q is not one of bash, zsh, fish, powershell", args[0])
		}
		if err != nil {
			return fmt.Errorf("completion: %w", err)
		}
		if e.json() {
			return e.printJSON(map[string]string{"shell": args[0], "script": script.String()})
		}
		return e.write(script.Bytes()) // unescaped
	})
	cmd.ValidArgsFunction = fixed("bash", "zsh", "fish", "powershell")
	return cmd
}

// anyArgument is for [completion]: all arguments, or the value of a flag, are completed.
const anyArgument = -1

const completionTimeout = 2 * time.Second

// completion returns a function that completes the first n arguments of a command with these names.
func completion(n int, names func(ctx context.Context) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if n != anyArgument && len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		return names(ctx), cobra.ShellCompDirectiveNoFileComp
	}
}

// fixed returns a function that completes the value of a flag with one of these words.
func fixed(words ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

// topicNames returns the names of all topics that the user may use.
func (e *env) topicNames(ctx context.Context) []string {
	return e.namesOfTopics(func(list diaspora.TopicList) []diaspora.Topic {
		return slices.Concat(list.Topics, list.Shared, list.Public)
	})(ctx)
}

// namesOfTopics returns a function for the names of some of the topics that the user may use.
func (e *env) namesOfTopics(some func(list diaspora.TopicList) []diaspora.Topic) func(ctx context.Context) []string {
	return func(ctx context.Context) (names []string) {
		if _, client, err := e.client(); err == nil {
			list, _ := client.Topics(ctx)
			for _, t := range some(list) {
				names = append(names, t.Name)
			}
		}
		return names
	}
}

// completeGrantees completes a flag with those with whom the topic in the first argument is shared.
func (e *env) completeGrantees(cmd *cobra.Command, args []string, _ string) (names []string, _ cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	if _, client, err := e.client(); err == nil && len(args) > 0 {
		grants, _ := client.Grants(ctx, args[0])
		for _, g := range grants {
			if !g.Public {
				names = append(names, granteeText(g))
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// keyNames returns the names of the user's access keys.
func (e *env) keyNames(ctx context.Context) (names []string) {
	if _, client, err := e.client(); err == nil {
		keys, _ := client.Keys(ctx)
		for _, k := range keys {
			names = append(names, k.Name)
		}
	}
	return names
}

// profileNames returns the names of the user's profiles.
func (e *env) profileNames(context.Context) (names []string) {
	if profiles, err := diaspora.UserProfiles(e.getenv); err == nil {
		names, _ = profiles.Names()
	}
	return names
}

// groupNames returns the names of the user's consumer groups.
func (e *env) groupNames(ctx context.Context) (names []string) {
	cfg, err := e.config()
	if err != nil {
		return nil
	}
	client, err := diaspora.Dial(ctx, cfg)
	if err != nil {
		return nil
	}
	defer client.Close()
	groups, _ := kafka.Groups(ctx, client)
	for _, g := range groups {
		names = append(names, g.ID)
	}
	return names
}
