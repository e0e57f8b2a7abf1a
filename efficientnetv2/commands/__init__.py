"""The sub-commands of `efficientnetv2`, and their completion in a shell.

For the form of a command see `cli`.
"""

import importlib
from collections.abc import Sequence

from absl import flags

from efficientnetv2 import cli, declarative
from efficientnetv2.errors import UserError

# Name to what it does, in the order in which they are needed.
NAMES = {
    "train": "Train, evaluate, write the report and a SavedModel.",
    "eval": "Evaluate a run, or published weights.",
    "predict": "Predict the classes of images.",
    "demo": "Try a model in the browser.",
    "export": "Write a run's model for Keras, LiteRT or ONNX.",
    "report": "Rewrite the HTML report of a run.",
    "runs": "List and compare runs.",
    "data": "List, preview and export datasets.",
    "models": "List models, with accuracy, size and cost.",
    "find_lr": "Find a learning rate with a few steps at rising rates.",
    "study": "Train the arms of an ablation study, and report on them.",
    "benchmark": "Measure the speed of training and inference.",
    "completion": "Print the completion script of a shell.",
}
_MODULES = {
    "predict": "predict",
    "demo": "predict",
    "runs": "lists",
    "data": "lists",
    "models": "lists",
    "study": "study",
    "benchmark": "study",
}


def load_command(name: str) -> cli.Command:
    """Returns a command; imports no TensorFlow."""
    if name == "completion":
        return completion
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'run')}")
    return getattr(module, "evaluate" if name == "eval" else name)


# --- Completion -------------------------------------------------------------

_SHELLS = ("bash", "zsh", "fish")
# Flag to the kind of names that it takes.
_KINDS = {
    "dataset": "datasets",
    "model_name": "models",
    "recipe": "recipes",
    "study": "studies",
}
_BASH = r"""
_efficientnetv2() {
  local word="${COMP_WORDS[COMP_CWORD]}" flag= values= at=$((COMP_CWORD - 1))
  COMPREPLY=()
  # Bash makes words of the '=' and of what follows it.
  if [[ $word == = ]]; then
    flag="${COMP_WORDS[at]}" word=
  elif [[ ${COMP_WORDS[at]} == = ]]; then
    flag="${COMP_WORDS[at - 1]}"
  elif [[ ${COMP_WORDS[at]} == --* && $word != -* ]]; then
    flag="${COMP_WORDS[at]}"
  fi
  if [[ $COMP_CWORD == 1 ]]; then
    values="@COMMANDS@"
  else
    case "${COMP_WORDS[1]} $flag" in
@CASES@
    esac
  fi
  [[ -z $flag && $word == --* ]] && compopt -o nospace
  COMPREPLY=($(compgen -W "$values" -- "$word"))
}
complete -o default -F _efficientnetv2 efficientnetv2"""


@cli.command()
def completion(given: flags.FlagValues, words: Sequence[str]) -> None:
    """Print a script that completes commands, flags and names in a shell.

        eval "$(efficientnetv2 completion bash)"       # in ~/.bashrc
        eval "$(efficientnetv2 completion zsh)"        # in ~/.zshrc
        efficientnetv2 completion fish | source        # in config.fish

    Names of datasets, models, recipes and studies are those of this version.
    """
    shell = words[0] if words else None
    if len(words) != 1 or shell not in _SHELLS:
        raise UserError(
            f"Name a shell, one of {', '.join(_SHELLS)}: efficientnetv2 "
            "completion bash"
        )
    if shell == "fish":
        print(complete_in_fish())
        return
    if shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(complete_in_bash())


def _values(flag: flags.Flag) -> list[str]:
    """Returns what may follow a flag, as far as it is known."""
    if flag.name in _KINDS:
        return declarative.names(_KINDS[flag.name])
    if flag.name == "formats":
        # Imports NumPy, which no other command should wait for.
        from efficientnetv2.serving import formats

        return list(formats.FORMATS)
    return list(getattr(flag.parser, "enum_values", ()))


def _flags_of(name: str) -> list[flags.Flag]:
    values = cli.own_flags(load_command(name))
    return [values[each] for each in values]


def complete_in_bash() -> str:
    """Returns the script for bash."""
    cases = []
    for name in NAMES:
        offered = ["--help", "--helpfull"]
        for flag in _flags_of(name):
            if isinstance(flag, flags.BooleanFlag):
                offered += [f"--{flag.name}", f"--no{flag.name}"]
                continue
            offered.append(f"--{flag.name}=")
            if known := " ".join(_values(flag)):
                cases.append((f"{name} --{flag.name}", known))
        cases.append((f"{name} ", " ".join(offered)))
    lines = [f'      "{case}") values="{values}";;' for case, values in cases]
    script = _BASH.strip().replace("@CASES@", "\n".join(lines))
    return script.replace("@COMMANDS@", " ".join(NAMES))


def complete_in_fish() -> str:
    """Returns the script for fish."""
    begin = "complete -c efficientnetv2"
    lines = [
        f"{begin} -n __fish_use_subcommand -f -a {name} -d '{text}'"
        for name, text in NAMES.items()
    ]
    for name in NAMES:
        here = f"{begin} -n '__fish_seen_subcommand_from {name}'"
        for flag in _flags_of(name):
            line = f"{here} -l {flag.name}"
            if isinstance(flag, flags.BooleanFlag):
                lines.append(f"{here} -l no{flag.name}")
            elif known := " ".join(_values(flag)):
                line += f" -x -a '{known}'"
            else:
                line += " -r"
            lines.append(line)
    return "\n".join(lines)
