"""The demo from start to end."""

import functools
import sys

from rich.console import Console

from jaxclip.demo._agreement import Agreement
from jaxclip.demo._metrics import write_metrics
from jaxclip.demo._notebook_net import NetComparison, compare_nets
from jaxclip.demo._picture import draw
from jaxclip.demo._progress import progress
from jaxclip.demo._report import print_net, print_trainings
from jaxclip.demo._settings import DemoError, Settings
from jaxclip.demo._text import load_corpus
from jaxclip.demo._trainings import train_all

_WIDTH_OF_A_FILE = 100


def run(settings: Settings) -> int:
    """Run the demo, print what it finds, and write the picture and the numbers.

    Args:
        settings: What is trained, on what, and where the results go.

    Returns:
        The exit status: 0 if torch and JAX are equal up to rounding, otherwise 1.

    Raises:
        DemoError: If the text cannot be learnt, or the results cannot be written.
    """
    on_terminal = sys.stdout.isatty()
    console = Console(
        # Whatever the environment says: no control characters in a file.
        force_terminal=on_terminal,
        width=None if on_terminal else _WIDTH_OF_A_FILE,
        highlight=False,
        markup=False,
        emoji=False,
    )
    corpus = load_corpus(settings)
    try:
        # Before the training: better to fail now than after it.
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"--out {settings.out}: {error.strerror}") from None

    console.print("1. The notebook's net, with the same weights in torch and in JAX\n")
    net = compare_nets(settings.seed)
    print_net(console, net)
    _print_verdict(console, net)

    console.print(
        f"2. A recurrent language model on {corpus.name}: "
        f"{len(corpus.tokens):,} characters, {corpus.vocab_size} different ones\n"
    )
    trainings = train_all(settings, corpus, functools.partial(progress, console))
    print_trainings(console, trainings)
    _print_verdict(console, trainings.agreement)

    picture, metrics = settings.out / "clipping.png", settings.out / "metrics.json"
    try:
        draw(trainings, settings, picture)
        write_metrics(net, trainings, settings, metrics)
    except OSError as error:
        raise DemoError(f"--out {settings.out}: {error.strerror}") from None
    console.print(f"Picture: {picture}\nNumbers: {metrics}", soft_wrap=True)
    return 0 if net.equal and trainings.agreement.equal else 1


def _print_verdict(console: Console, found: NetComparison | Agreement) -> None:
    color = "green" if found.equal else "red"
    console.print(f"Verdict: {found}\n", style=f"bold {color}")
