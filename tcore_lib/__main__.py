"""Command line: `python -m tcore_lib COMMAND`. Each command is one call into the library, imported when it is asked for."""

import argparse
import sys

from tcore_lib.errors import InputError


def _reproduce(args: argparse.Namespace) -> int:
    from tcore_lib.reproduce import reproduce

    only = args.only.split(",") if args.only else None
    return reproduce(args.profile, only=only, start=args.start, force=args.force)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tcore_lib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("reproduce", help="run a profile's notebooks and print the table")
    command.add_argument("profile", help="a parameter file, or the name of one in params/")
    command.add_argument("--only", metavar="03,07", help="just these notebooks")
    command.add_argument("--from", dest="start", metavar="02", help="this notebook and the ones after it")
    command.add_argument("--force", action="store_true", help="also run what is finished and unchanged")
    command.set_defaults(run=_reproduce)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 1 when the work failed, 2 for bad input, 130 when interrupted.
    """
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except InputError as error:
        print(f"tcore_lib: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tcore_lib: interrupted; the same command continues from what is finished.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
