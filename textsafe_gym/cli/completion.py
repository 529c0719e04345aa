"""`textsafe completion`, and what click's own scripts for bash and zsh leave to be wished for.

A key is completed up to its `=`, and no space follows it; where a setting takes few values, these come next. Bash
parts words at `=` and `:`, so that its script hands over the line rather than the words, and takes off an answer what
bash keeps in place, as click has taken off an option's name before its `=`.
"""

import os

import click
from click.shell_completion import (
    BashComplete,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

VARIABLE = "_TEXTSAFE_COMPLETE"  # as click names it

_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}" answer kind value
    local word="${line##*[[:space:]]}"
    local kept="${word%%"$2"}"
    kept="${kept#--*=}"
    COMPREPLY=()
    for answer in $(COMP_LINE="$line" COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD \\
        %(complete_var)s=bash_complete "$1"); do
        IFS=',' read -r kind value <<< "$answer"
        case "$kind" in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("${value#"$kept"}")
                [[ "$value" == *[=.] ]] && compopt -o nospace
                ;;
        esac
    done
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_ZSH = """\
#compdef %(prog_name)s
%(complete_func)s() {
    local -a answers whole begun
    local kind value about
    answers=("${(@f)$(COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \\
        %(complete_var)s=zsh_complete %(prog_name)s)}")
    for kind value about in ${answers}; do
        case "$kind" in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain)
                [[ "$about" == _ ]] && value=${value//:/\\\\:}
                if [[ "$value" == *[=.] ]]; then begun+=("$value:${about#_}"); else whole+=("$value:${about#_}"); fi
                ;;
        esac
    done
    (( $#whole )) && _describe -V unsorted whole -U
    (( $#begun )) && _describe -V unsorted begun -U -S ''
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

_EXAMPLE = """\b
Examples:
  textsafe completion bash
  textsafe completion zsh
"""


@add_completion_class
class Bash(BashComplete):
    """Words parted by spaces alone, where the script hands over the line."""

    source_template = _BASH

    def source(self) -> str:
        """The script; click would run a bash to ask for its version, which has to be 4.4."""
        return ShellComplete.source(self)

    def get_completion_args(self) -> tuple[list[str], str]:
        """The whole words after the command, and the one that is being typed."""
        line = os.environ.get("COMP_LINE")
        if line is None:
            return super().get_completion_args()
        words = split_arg_string(line)
        incomplete = words.pop() if line[-1:].strip() else ""
        return words[1:], incomplete


@add_completion_class
class Zsh(ZshComplete):
    """Keys without a space after them."""

    source_template = _ZSH


@click.command(epilog=_EXAMPLE)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="bash|zsh|fish")
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Prints the script that completes commands, options, algorithms, environments and settings in your shell.

    \b
    To have it in every new shell:
      bash  echo 'eval "$(textsafe completion bash)"' >> ~/.bashrc
      zsh   echo 'eval "$(textsafe completion zsh)"' >> ~/.zshrc     after the line with compinit
      fish  textsafe completion fish > ~/.config/fish/completions/textsafe.fish

    The bash script needs version 4.4 or newer.
    """
    kind = {"bash": Bash, "zsh": Zsh, "fish": FishComplete}[shell]
    click.echo(kind(context.find_root().command, {}, "textsafe", VARIABLE).source(), nl=False)
