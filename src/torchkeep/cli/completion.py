"""``torchkeep completion``: a script that teaches a shell the verbs, their options and the values those take."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from torchkeep.cli.console import Verbs, add_verb, say

SHELLS = ("bash", "zsh", "fish")


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "completion",
        run,
        about="Print a script that completes verbs, options and paths in a shell.",
        examples=[
            'eval "$(torchkeep completion bash)"          (in ~/.bashrc)',
            'eval "$(torchkeep completion zsh)"           (in ~/.zshrc, after compinit)',
            "torchkeep completion fish > ~/.config/fish/completions/torchkeep.fish",
        ],
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from torchkeep.cli import make_parser

    described = verbs_of(make_parser())
    say({"bash": bash, "zsh": zsh, "fish": fish}[arguments.shell](described))
    return 0


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb as a shell has to know it: what it does, and its options with the values that each takes."""

    about: str
    options: Mapping[str, tuple[str, ...]]


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, Verb]:
    """The verbs of a parser with their options, long before short."""
    found: dict[str, Verb] = {}
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list of what was added
        if not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            continue
        about = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001 - as above
        for name, verb in action.choices.items():
            options = {
                option: tuple(map(str, each.choices or ()))
                for each in verb._actions  # noqa: SLF001 - as above
                for option in sorted(each.option_strings, key=len, reverse=True)
            }
            positional = [each for each in verb._actions if not each.option_strings and each.choices]  # noqa: SLF001
            options |= {str(choice): () for each in positional for choice in each.choices or ()}
            found[name] = Verb(about.get(name, ""), options)
    return found


def bash(verbs: Mapping[str, Verb]) -> str:
    """The script for bash; paths complete where no option does."""
    cases = []
    for name, verb in verbs.items():
        values = [
            f'      {option}) COMPREPLY=($(compgen -W "{" ".join(choices)}" -- "$word")); return ;;'
            for option, choices in verb.options.items()
            if choices
        ]
        inside = ["    case $before in", *values, "    esac"] if values else []
        cases += [f"  {name})", *inside, f'    words="{" ".join(verb.options)}" ;;']
    return "\n".join(
        [
            "_torchkeep() {",
            '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""',
            "  COMPREPLY=()",
            "  if [ $COMP_CWORD -eq 1 ]; then",
            f'    COMPREPLY=($(compgen -W "{" ".join(verbs)} --help --version" -- "$word")); return',
            "  fi",
            "  case ${COMP_WORDS[1]} in",
            *cases,
            "  esac",
            '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
            "  local path",
            "  if [[ $word != -* ]]; then",
            '    while IFS= read -r path; do COMPREPLY+=("$path"); done < <(compgen -f -- "$word")',
            "  fi",
            "}",
            "complete -o filenames -F _torchkeep torchkeep",
        ]
    )


def zsh(verbs: Mapping[str, Verb]) -> str:
    """The script for zsh, which takes bash's completions."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash(verbs)}"


def fish(verbs: Mapping[str, Verb]) -> str:
    """The script for fish."""
    lines = []
    for name, verb in verbs.items():
        about = verb.about.replace("'", "\\'")
        lines.append(f"complete -c torchkeep -n __fish_use_subcommand -f -a {name} -d '{about}'")
        for option, choices in verb.options.items():
            values = f" -x -a '{' '.join(choices)}'" if choices else ""
            kind = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}" if option[0] == "-" else ""
            word = f"{kind}{values}" if kind else f"-a {option}"
            lines.append(f"complete -c torchkeep -n '__fish_seen_subcommand_from {name}' {word}")
    return "\n".join(lines)
