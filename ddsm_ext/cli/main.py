"""Entry point of `ddsm`: finds the command, parses its arguments, turns errors into sentences.

A command is one file of this package with `add_arguments(parser)` and `run(args) -> int`, imported
when it is asked for; none of them imports torch before `run`, so every `--help` is quick.
"""

from __future__ import annotations

import argparse
import importlib
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from ddsm_ext import __version__
from ddsm_ext.cli.console import harmless_output, silence
from ddsm_ext.settings import Refusal, did_you_mean, shown

Command = Callable[[argparse.Namespace], int]

# command -> (module of this package, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("quickstart", "train, search, sample, score and report on small real images"),
    "checks": ("checks", "versions, libraries, processor or GPU, and a self-test of every op"),
    "encode": ("encode", "write latents of images once, for a network that is trained on them"),
    "train": ("train", "train one network that works at every width"),
    "search": ("search", "search the width of each denoising step; writes the Pareto front"),
    "tune": ("tune", "fine-tune a run for its strategy, or for a width"),
    "sample": ("sample", "make images with a strategy or a constant width"),
    "eval": ("evaluate", "score a strategy, a width or a folder of images; JSON on stdout"),
    "classifier": ("classifier", "train the classifier whose features score samples"),
    "autoencoder": ("autoencoder", "train an autoencoder for latent diffusion on your images"),
    "report": ("report", "write report.html of a run folder"),
    "bench": ("bench", "time the ops, and the whole network at each width, on this machine"),
    "convert": ("convert", "import weights of other code, or a search result"),
    "export": ("export", "write the network, or one width of it, as other code has it"),
}

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
LONGEST_SENTENCE = 1000  # characters
_ALLOCATION = re.compile(
    "allocate memory|out of memory|not enough memory|ALLOC_FAILED|Storage size calculation overflow"
)


class UsageError(Refusal):
    """A command line that cannot be understood; its text is the sentence to print."""


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that raises `UsageError` instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def _usage() -> str:
    width = max(map(len, COMMANDS)) + 2
    rows = "\n".join(f"  {name:<{width}}{text}" for name, (_, text) in COMMANDS.items())
    return f"""usage: ddsm COMMAND [options]

Denoising Diffusion Step-aware Models: one network, a width for every denoising step.

commands:
{rows}

options:
  -h, --help   this text; `ddsm COMMAND --help` explains a command
  --version    the version

Start with `ddsm quickstart`."""


def parse_command(name: str, arguments: list[str]) -> tuple[Command, argparse.Namespace]:
    """Import a command's file and parse its arguments; returns its function and those.

    Raises:
        UsageError: an option is unknown, misspelt or badly formed.
    """
    module_name, text = COMMANDS[name]
    module = importlib.import_module(f"ddsm_ext.cli.{module_name}")
    parser = Parser(
        prog=f"ddsm {name}",
        description=module.__doc__ or text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    known = [option for action in parser._actions for option in action.option_strings]
    for argument in arguments:
        option = argument.split("=", 1)[0]
        if option.startswith("--") and option != "--" and option not in known:
            raise UsageError(f"ddsm {name}: unknown option {option}{did_you_mean(option, known)}")
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UsageError(f"ddsm {name}: unexpected argument {unknown[0]!r}; see ddsm {name} --help")
    return module.run, parsed


def _sentence(error: Exception) -> str | None:
    """What an error says to the user, in one line; None: it is a fault of the program."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        named = [str(name) for name in (error.filename, error.filename2) if name is not None]
        text = f"{' -> '.join(named) or 'the system'}: {error.strerror}"
    elif isinstance(error, Refusal | OSError):
        pass
    elif isinstance(error, MemoryError) or _is_of_allocation(error):
        size = re.search(r"allocate ([\d.]+ \w+)", text)
        wanted = f" of {size[1]}" if size else ""
        text = (
            f"an allocation{wanted} failed for want of memory; need a smaller batch "
            "(train.batch_size, eval.batch_size, --batch-size, --batch) or a smaller network"
        )
    elif isinstance(error, RecursionError):
        text = f"a value is nested too deeply ({error}); need a flat one"
    elif isinstance(error, OverflowError):
        text = f"a number is too large ({error}); need a smaller one"
    elif isinstance(error, UnicodeEncodeError):
        text = f"{shown(error.object)} is no {error.encoding} text; need names that are"
    else:
        return None
    text = " ".join(text.split())
    if len(text) > LONGEST_SENTENCE:
        text = f"{text[: LONGEST_SENTENCE // 2]} ... {text[-LONGEST_SENTENCE // 2 :]}"
    return text


def _is_of_allocation(error: Exception) -> bool:
    """Whether torch wants memory that there is not, which on a CPU has no class of its own."""
    return isinstance(error, RuntimeError) and bool(_ALLOCATION.search(str(error)))


def _interrupt(signum: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the second one ends the process at once
    raise KeyboardInterrupt


def _show_warning(message: Warning | str, *where: object, **more: object) -> None:
    print(f"ddsm: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if arguments[0] in ("--version", "-V"):
        print(f"ddsm {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        known = ["--help", "--version"] if kind == "option" else list(COMMANDS)
        raise UsageError(f"ddsm: unknown {kind} {name}{did_you_mean(name, known)}")
    command, parsed = parse_command(name, arguments[1:])
    return command(parsed)


def exit_code(command: Callable[[], int]) -> int:
    """Run a command; what it raises becomes a sentence, or the traceback of a bug, and a code.

    Args:
        command: returns its exit code.

    Returns:
        0 done, 1 a check failed or the program has a fault, 2 refused with one sentence (also where
        memory is short, or a number or nesting too large), 130 interrupted.
    """
    with harmless_output():
        return _exit_code(command)


def _exit_code(command: Callable[[], int]) -> int:
    show = warnings.showwarning
    handler = signal.getsignal(signal.SIGTERM)
    try:
        warnings.showwarning = _show_warning
        signal.signal(signal.SIGTERM, _interrupt)
        return command()
    except KeyboardInterrupt:
        print("ddsm: stopped; the same command continues where it was saved", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        silence(sys.stdout)  # its reader has gone (`ddsm ... | head`): nothing is left to say
        return 0
    except Exception as error:
        text = _sentence(error)
        if text is None:
            traceback.print_exc()
            return 1
        print(text if text.startswith("ddsm") else f"ddsm: {text}", file=sys.stderr)
        return EXIT_USER_ERROR
    finally:
        warnings.showwarning = show
        signal.signal(signal.SIGTERM, handler)


def main(argv: list[str] | None = None) -> int:
    """Run one `ddsm` command.

    Args:
        argv: the arguments after `ddsm`; None means those of this process.

    Returns:
        the exit code, as `exit_code` gives it.
    """
    return exit_code(partial(_dispatch, sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
