"""The command line, `python -m redream COMMAND`: a file a command. The only place that parses and prints.

A command is a module: the first line of its docstring is its help, `configure` adds its options, `run` runs it, and
`AFTER_INTERRUPT` says what an interrupt leaves. Exit status: 0, or 2 for input that cannot be used, with one sentence on
stderr. Ctrl-C once: a run is stopped and its results are made; twice, or in another command: end at once (130).
"""

import sys
import warnings
from collections.abc import Sequence

from redream.cli import benchmark, doctor, evaluate, export, generate, index, resume, retrieve, sample, setup
from redream.cli.common import Parser, configure_log
from redream.errors import RedreamError

COMMANDS = (generate, resume, export, retrieve, sample, evaluate, index, benchmark, setup, doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status. `arguments`: those of this program by default."""
    options = _parser().parse_args(arguments)
    configure_log(options)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # of libraries
            options.command.run(options)
    except RedreamError as error:
        _say(str(error), error)
        return 2
    except KeyboardInterrupt as interrupt:
        _say(f"Stopped at once; {options.command.AFTER_INTERRUPT}.", interrupt)
        return 130
    return 0


def _say(sentence: str, error: BaseException) -> None:
    """Print a sentence, and the notes of what ended the command."""
    print(sentence, *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)


def _parser() -> Parser:
    parser = Parser(prog="python -m redream", description="A sentence becomes a 3D object.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        name, summary = command.__name__.rpartition(".")[2], command.__doc__.partition("\n")[0]
        parser_of_command = commands.add_parser(name, help=summary, description=summary)
        parser_of_command.set_defaults(command=command)
        command.configure(parser_of_command)
    return parser
