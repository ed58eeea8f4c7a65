"""Run the code blocks of README.md and of the documents as tests."""

from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser


class AfterTheOthers(PythonEvaluator):
    """Runs a block after those before it, which another worker may have run."""

    def __call__(self, example: Example) -> None:
        """Run what has not been run of the document, up to this block."""
        __tracebackhide__ = True
        done = example.namespace.setdefault("__done__", set())
        for block in example.document:
            if block.start <= example.start and block.start not in done:
                super().__call__(block)
                done.add(block.start)


pytest_collect_file = Sybil(
    parsers=[CodeBlockParser("python", AfterTheOthers())],
    patterns=["README.md", "docs/*.md"],
).pytest()
