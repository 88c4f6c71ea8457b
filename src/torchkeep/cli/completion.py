"""``torchkeep completion``: a script that teaches a shell the verbs, their options and the values those take."""

from __future__ import annotations

import argparse
import re
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
            'eval "$(torchkeep completion zsh)"           (in ~/.zshrc)',
            "torchkeep completion fish > ~/.config/fish/completions/torchkeep.fish",
        ],
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from torchkeep.cli import make_parser

    parser = make_parser()
    say({"bash": bash, "zsh": zsh, "fish": fish}[arguments.shell](verbs_of(parser), options_of(parser)))
    return 0


@dataclass(frozen=True, slots=True)
class Option:
    """An option: what it does, what it takes (empty for nothing), the values to choose from, whether it may repeat."""

    about: str
    takes: str = ""
    values: tuple[str, ...] = ()
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb as a shell has to know it: what it does, its options by name, and words that it takes instead of paths."""

    about: str
    options: Mapping[str, Option]
    words: tuple[str, ...] = ()


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, Verb]:
    """The verbs of a parser with their options, long before short."""
    found: dict[str, Verb] = {}
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list of what was added
        if not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            continue
        about = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001 - as above
        for name, verb in action.choices.items():
            words = [each.choices or () for each in verb._actions if not each.option_strings]  # noqa: SLF001 - as above
            found[name] = Verb(about.get(name, ""), options_of(verb), tuple(str(word) for of in words for word in of))
    return found


def options_of(parser: argparse.ArgumentParser) -> dict[str, Option]:
    """The options of a parser, each under all its names."""
    found: dict[str, Option] = {}
    for each in parser._actions:  # noqa: SLF001 - as above
        about = parser._get_formatter()._expand_help(each) if each.help else ""  # noqa: SLF001 - as above
        takes = "" if each.nargs == 0 else str(each.metavar or each.dest)
        option = Option(about, takes, tuple(map(str, each.choices or ())), isinstance(each, argparse._AppendAction))  # noqa: SLF001
        found |= dict.fromkeys(sorted(each.option_strings, key=len, reverse=True), option)
    return found


def bash(verbs: Mapping[str, Verb], top: Mapping[str, Option]) -> str:
    """The script for bash; paths complete where no option does."""
    cases = []
    for name, verb in verbs.items():
        values = [
            f'      {name}) COMPREPLY=($(compgen -W "{" ".join(option.values)}" -- "$word")); return ;;'
            for name, option in verb.options.items()
            if option.values
        ]
        inside = ["    case $before in", *values, "    esac"] if values else []
        cases += [f"  {name})", *inside, f'    words="{" ".join((*verb.options, *verb.words))}" ;;']
    return "\n".join(
        [
            "_torchkeep() {",
            '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""',
            "  COMPREPLY=()",
            "  if [ $COMP_CWORD -eq 1 ]; then",
            f'    COMPREPLY=($(compgen -W "{" ".join((*verbs, *top))}" -- "$word")); return',
            "  fi",
            "  # bash makes words of its own of --to=safetensors.",
            "  if [[ $word == = ]]; then word=",
            '  elif [[ $before == = ]]; then before="${COMP_WORDS[COMP_CWORD-2]}"; fi',
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


def zsh(verbs: Mapping[str, Verb], top: Mapping[str, Option]) -> str:
    """The script for zsh, with what each verb and option is about."""
    cases = []
    for name, verb in verbs.items():
        takes = [f":word:({' '.join(verb.words)})"] if verb.words else ["*:path:_files"]
        specs = [*(_zsh_spec(*each) for each in verb.options.items()), *takes]
        cases += [f"  {name}) _arguments {' '.join(map(_quoted, specs))} ;;"]
    listed = (_quoted(f"{name}:{verb.about}") for name, verb in verbs.items())
    return "\n".join(
        [
            "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }",
            "_torchkeep() {",
            "  if (( CURRENT == 2 )); then",
            f"    local -a verbs=({' '.join(listed)})",
            f"    _describe verb verbs; [[ $PREFIX == -* ]] && compadd -- {' '.join(top)}",
            "    return",
            "  fi",
            "  shift words; (( CURRENT-- ))",
            "  case $words[1] in",
            *cases,
            "  esac",
            "}",
            "compdef _torchkeep torchkeep",
        ]
    )


def _zsh_spec(name: str, option: Option) -> str:
    """An option as zsh's `_arguments` takes it."""
    about = re.sub(r"([\[\]:\\])", r"\\\1", option.about)
    takes = option.takes.replace(":", r"\:")
    values = f"({' '.join(option.values)})" if option.values else "_files"
    equals = "=" if name.startswith("--") and option.takes else ""
    return f"{'*' * option.repeats}{name}{equals}[{about}]" + (f":{takes}:{values}" if option.takes else "")


def fish(verbs: Mapping[str, Verb], top: Mapping[str, Option]) -> str:
    """The script for fish, with what each verb and option is about."""
    lines = [_fish_option("__fish_use_subcommand", *each) for each in top.items()]
    for name, verb in verbs.items():
        lines.append(f"complete -c torchkeep -n __fish_use_subcommand -f -a {name} -d {_quoted(verb.about, fish=True)}")
        seen = f"'__fish_seen_subcommand_from {name}'"
        lines += [_fish_option(seen, *each) for each in verb.options.items()]
        lines += [f"complete -c torchkeep -n {seen} -f -a '{' '.join(verb.words)}'"] if verb.words else []
    return "\n".join(lines)


def _fish_option(condition: str, name: str, option: Option) -> str:
    kind = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
    values = f" -x -a '{' '.join(option.values)}'" if option.values else " -r" if option.takes else ""
    return f"complete -c torchkeep -n {condition} {kind}{values} -d {_quoted(option.about, fish=True)}"


def _quoted(text: str, *, fish: bool = False) -> str:
    r"""A text as one word of a shell: fish knows ``\'`` in quotes, the others do not."""
    if fish:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return "'" + text.replace("'", "'\\''") + "'"
