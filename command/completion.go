package command

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"p2ptun/proto"
)

// The scripts ask the program itself what may come next.
var completions = map[string]string{
	"bash": `_p2ptun() {
  local words typed=${COMP_WORDS[COMP_CWORD]} line=("${COMP_WORDS[@]:0:$COMP_CWORD}")
  [[ $typed != -* ]] || line+=("$typed")
  words=$("${line[@]}" --generate-bash-completion 2>/dev/null)
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$typed")
}
complete -o bashdefault -o default -F _p2ptun p2ptun
`,
	"zsh": `#compdef p2ptun
_p2ptun() {
  local -a line words_next
  line=(${words[@]:0:$((CURRENT-1))})
  [[ $words[CURRENT] != -* ]] || line+=($words[CURRENT])
  words_next=("${(@f)$($line --generate-bash-completion 2>/dev/null)}")
  _describe 'p2ptun' words_next
}
compdef _p2ptun p2ptun
`,
	"powershell": `Register-ArgumentCompleter -Native -CommandName p2ptun -ScriptBlock {
  param($word, $ast, $cursor)
  $words = $ast.CommandElements | Select-Object -Skip 1 | ForEach-Object { $_.ToString() } | Where-Object { $_ -ne $word -or $word.StartsWith('-') }
  p2ptun @words --generate-bash-completion 2>$null | Where-Object { $_ -like "$word*" } | ForEach-Object {
    [System.Management.Automation.CompletionResult]::new($_, $_, 'ParameterValue', $_)
  }
}
`,
}

func (t *tool) completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a completion script", ArgsUsage: "bash|zsh|fish|powershell",
		Description: "For bash: source <(p2ptun completion bash)",
		Action:      t.completion,
	}
}

func (t *tool) completion(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	shell := c.Args().First()
	script, ok := completions[shell]
	if shell == "fish" {
		fish, err := c.App.ToFishCompletion()
		if err != nil {
			return err
		}
		script, ok = fish, true
	}
	if !ok {
		return usageHint("no completion for "+proto.ShellQuote(shell), "p2ptun completion bash|zsh|fish|powershell")
	}
	_, err := fmt.Fprint(t.Out, script)
	return err
}

func (t *tool) manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Usage: "print the manual page (troff)",
		Description: "To read it: p2ptun man | man -l -",
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 0, 0); err != nil {
				return err
			}
			hideThisMachine(c.App)
			page, err := c.App.ToManWithSection(1)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(t.Out, page)
			return err
		},
	}
}

// hideThisMachine: a manual page is for all machines.
func hideThisMachine(app *cli.App) {
	for _, f := range app.Flags {
		if s, ok := f.(*cli.StringFlag); ok && s.Name == "home" {
			s.Value, s.DefaultText = "", "p2ptun in the user's data directory"
		}
	}
}
