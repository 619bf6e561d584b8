"""The command `vae-fast`: picks the subcommand, turns mistakes into one line and an exit code."""

import argparse
import importlib
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable

from vae_fast import __version__

from .errors import Interrupted, UserError

COMMANDS = {
    "fit": "train a VAE; without options, on the built-in handwritten digits",
    "test": "print the ELBO and the log-evidence of a trained VAE",
    "sample": "write images drawn from a trained VAE",
}
EXTRA = (
    "lightning",
    "jsonargparse",
    "matplotlib",
    "PIL",
    "mlxtend",
    "docstring_parser",
    "typeshed_client",
    "yaml",
)
UNHELPFUL_WARNINGS = (
    r".*does not have many workers",
    r".*that ended before the epoch ended",
    r".*isinstance\(treespec, LeafSpec\)` is deprecated",
    r"\s*(By default only one Jsonargparse|skip_none parameter was deprecated)",
)
EXIT_USER_ERROR = 2
EXIT_SIGNAL = 128


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand.

    **Returns** 0; 2 after a mistake of the user's, told in one line on stderr; 128 + the signal's number
    (SIGINT 130, SIGTERM 143) after an interruption.
    """
    parser = argparse.ArgumentParser("vae-fast", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.description = "\n".join(f"{name:<8}{text}" for name, text in COMMANDS.items())
    parser.add_argument("--version", action="version", version=f"vae-fast {__version__}")
    parser.add_argument("command", choices=COMMANDS, help="vae-fast COMMAND --help lists its options")
    argv = sys.argv[1:] if argv is None else argv
    command, options = parser.parse_args(argv[:1]).command, argv[1:]
    previous = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _guarded(lambda: _load(command)(options))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _load(command: str) -> Callable[[list[str]], None]:
    """Imports the subcommand: only here do lightning, matplotlib, PIL and mlxtend come in."""
    run = importlib.import_module(f"vae_fast.cli.{command}").run
    _quieten()
    return run


def _quieten() -> None:
    """Leaves out Lightning's announcements and the warnings that do not apply to data kept in memory."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in UNHELPFUL_WARNINGS:
        warnings.filterwarnings("ignore", message)


def _guarded(run: Callable[[], None]) -> int:
    try:
        run()
    except Interrupted as interrupted:
        return _stopped(interrupted)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package and package not in EXTRA:
            raise
        return _complain(f"{package} is not installed: pip install vae_fast[train]" if package else str(error))
    except (UserError, OSError) as error:
        return _complain(_describe(error))
    except Exception as error:
        if type(error).__name__ not in ("ArgumentError", "MisconfigurationException"):
            raise
        return _complain(re.sub(r'Parser key "(.+?)":', r"--\1:", str(error)))
    return 0


def _interrupt(signum: int, frame: object) -> None:
    raise Interrupted(signum)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _complain(message: str) -> int:
    if _first_process():
        print("vae-fast: error:", " ".join(message.split()), file=sys.stderr)
    return EXIT_USER_ERROR


def _stopped(interrupted: Interrupted) -> int:
    name = signal.Signals(interrupted.signum).name
    if interrupted.checkpoint is None:
        advice = "nothing was trained yet"
    else:
        advice = f"resume with: vae-fast fit --ckpt_path {interrupted.checkpoint}"
    if not _first_process():
        return 0
    print(f"vae-fast: stopped by {name}; {advice}", file=sys.stderr)
    return EXIT_SIGNAL + interrupted.signum


def _first_process() -> bool:
    """Whether this is the process that the user started, and not one that it started for another device."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
