package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
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
	long:    `SHELL is one of bash, zsh, fish, powershell.`,
	formats: answerFormats,
	args:    arguments{min: 1, max: 1, missing: "name the shell: bash, zsh, fish or powershell"},
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
		return e.write(script.Bytes())
	})
	cmd.ValidArgsFunction = cobra.FixedCompletions([]string{"bash", "zsh", "fish", "powershell"}, cobra.ShellCompDirectiveNoFileComp)
	return cmd
}
