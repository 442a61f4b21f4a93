"""The command line, `tcore COMMAND` or `python -m tcore_lib COMMAND`: each command is a function of the library.

Its arguments and help stand once, in the function's signature and docstring; its module is imported when it is asked for.
"""

import ast
import os
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tcore_lib import __version__

try:
    import cyclopts
    from rich.console import Console

    from tcore_lib.errors import InputError, known_names
except ModuleNotFoundError as error:
    sys.exit(f"tcore: {sys.executable} has no package {error.name}; run .venv/bin/tcore instead, after `make install`.")

COMMANDS = {
    "reproduce": "tcore_lib.reproduction.reproduce:reproduce",
    "table": "tcore_lib.reproduction.table:table_of",
    "book": "tcore_lib.reproduction.book:book",
    "publish": "tcore_lib.reproduction.table:publish",
    "prepare": "tcore_lib.data.videos:prepare_command",
    "shard": "tcore_lib.data.shards:shard_command",
    "fetch": "tcore_lib.fetch:fetch",
    "doctor": "tcore_lib.evaluation.commands:doctor_command",
    "pretrain": "tcore_lib.training.loop:pretrain_command",
    "forecast": "tcore_lib.training.forecast:forecast_command",
    "evaluate": "tcore_lib.evaluation.commands:evaluate_command",
    "score": "tcore_lib.evaluation.commands:score_command",
    "compare": "tcore_lib.evaluation.variants:compare_command",
    "inspect": "tcore_lib.model.export:inspect_command",
    "export": "tcore_lib.training.checkpoints:export_command",
    "study": "tcore_lib.reproduction.study:run_study",
    "init": "tcore_lib.params:init",
}
NOTEBOOKS = ("reproduce", "book", "study")  # commands that need the extra `notebooks`


def summary(where: str) -> str:
    """First line of a command's docstring, read without importing its module (many bring torch)."""
    module, _, name = where.partition(":")
    file = Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    found = next(node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == name)
    return (ast.get_docstring(found) or "").partition("\n")[0]


def application(argv: Sequence[str]) -> cyclopts.App:
    """All commands; the one that is asked for gets its help from its docstring, the others from its first line alone."""
    console = Console(width=min(100, Console().width), highlight=False)
    app = cyclopts.App(
        "tcore",
        help="T-CoRe: video pretraining by temporal correspondence. `tcore COMMAND --help` explains a command.",
        help_format="plaintext",
        version=__version__,
        console=console,
        default_parameter=cyclopts.Parameter(negative=""),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for name, where in COMMANDS.items():
        asked = bool(argv) and argv[0] == name
        app.command(where, name=name, **({} if asked else {"help": summary(where)}))
    app.register_install_completion_command()
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 1 the work failed, 2 bad input, 130 interrupted, 141 nobody reads on, 143 told to end."""
    argv = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whatever is open is closed
    try:
        if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
            raise InputError(f"there is no command {argv[0]}; {known_names(argv[0], COMMANDS)}")
        if argv and argv[0] in NOTEBOOKS and find_spec("papermill") is None:
            raise InputError(f"{argv[0]} needs more packages: pip install 'tcore-notebooks[notebooks]' brings them.")
        code = application(argv)(argv, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except InputError as error:
        return _say(str(error), 2)
    except cyclopts.CycloptsError as error:
        return _say(" ".join(str(error).split()) + f" See: tcore {argv[0]} --help", 2)
    except KeyboardInterrupt as stop:  # a training says more, and whether it was SIGTERM
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        said = str(stop) or "stopped; what is finished is kept, and the same command goes on from there."
        return _say(said, getattr(stop, "exit_code", 130))
    except BrokenPipeError:  # `| head` has seen enough; Python must not try to write the rest at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _say(sentence: str, code: int) -> int:
    print(f"tcore: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
