"""The demo from start to end."""

import functools
import sys

from rich.console import Console

from jaxclip.demo._language_model import make_task
from jaxclip.demo._metrics import write_metrics
from jaxclip.demo._notebook_net import NetComparison, compare_nets
from jaxclip.demo._picture import draw
from jaxclip.demo._progress import progress
from jaxclip.demo._proof import Proof, prove
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
    task = make_task(settings, corpus)
    watch = functools.partial(progress, console)
    trainings = train_all(task, watch)
    print_trainings(console, trainings)

    console.print("3. Its first steps in torch, recorded, and computed anew in JAX\n")
    out = settings.out
    files = {
        "Report": out / "report.html",
        "Picture": out / "clipping.png",
        "Numbers": out / "metrics.json",
    }
    try:
        proof = prove(task, out, watch)
        proof.report.save_html(files["Report"])
        draw(trainings, proof, settings, files["Picture"])
        write_metrics(net, trainings, proof, settings, files["Numbers"])
    except OSError as error:
        raise DemoError(f"--out {out}: {error.strerror}") from None
    console.print(proof.report)
    _print_verdict(console, proof)
    for name, path in files.items():
        console.print(f"{name + ':':8} {path}", soft_wrap=True)
    return 0 if net.equal and proof.equal else 1


def _print_verdict(console: Console, found: NetComparison | Proof) -> None:
    color = "green" if found.equal else "red"
    console.print(f"Verdict: {found}\n", style=f"bold {color}")
