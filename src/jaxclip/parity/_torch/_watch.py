"""Seeing what a training loop calls, by standing in for it for a while."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import GeneratorType
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.utils import clip_grad
from torch.optim.lr_scheduler import LRScheduler

Around = Callable[..., AbstractContextManager[Any]]
"""Makes, of the arguments of a call, a context in which the call is made. The context
may yield a function, which is then called with what the call returned."""


class Listener(Protocol):
    """Makes contexts to make the calls of a training loop in."""

    @property
    def backward(self) -> Around: ...
    @property
    def clip_grad_norm(self) -> Around: ...
    @property
    def clip_grads_with_norm(self) -> Around: ...
    @property
    def clip_grad_value(self) -> Around: ...
    @property
    def zero_grad(self) -> Around: ...
    @property
    def scale(self) -> Around: ...
    @property
    def unscale(self) -> Around: ...
    @property
    def scaler_step(self) -> Around: ...
    @property
    def scheduler_step(self) -> Around: ...


@contextmanager
def watching(listener: Listener, schedulers: tuple[Any, ...]) -> Iterator[None]:
    """Make the calls of a training loop known to a listener.

    Every name that the loop may have imported leads to the same functions: ``backward``
    of a tensor looks ``torch.autograd.backward`` up, methods are looked up in their
    classes, and torch's clips are wrappers, which are opened.

    Args:
        listener: What is told.
        schedulers: Schedulers of classes that torch does not know.
    """
    with ExitStack() as stack:

        def watch(owner: Any, name: str, around: Around) -> None:
            stack.enter_context(_replaced(owner, name, around))

        watch(torch.autograd, "backward", listener.backward)
        for owner in (torch.optim.Optimizer, nn.Module):
            watch(owner, "zero_grad", listener.zero_grad)
        watch(torch.amp.GradScaler, "scale", listener.scale)
        watch(torch.amp.GradScaler, "unscale_", listener.unscale)
        watch(torch.amp.GradScaler, "step", listener.scaler_step)
        for kind in _with_own_step(schedulers):
            watch(kind, "step", listener.scheduler_step)
        for function, around in (
            (clip_grad.clip_grad_norm_, listener.clip_grad_norm),
            (clip_grad._clip_grads_with_norm_, listener.clip_grads_with_norm),
            (clip_grad.clip_grad_value_, listener.clip_grad_value),
        ):
            stack.enter_context(_opened(function, around))
        yield


def _made_within(call: Callable[..., Any], around: Around) -> Callable[..., Any]:
    @functools.wraps(call)
    def made(*args: Any, **kwargs: Any) -> Any:
        # An iterator can be used once: the listener gets its items, the call another.
        held = [_held(arg) for arg in args]
        named = {name: _held(arg) for name, arg in kwargs.items()}
        with around(*held, **named) as told:
            result = call(
                *(map(_again, args, held)),
                **{name: _again(arg, named[name]) for name, arg in kwargs.items()},
            )
            if told is not None:
                told(result)
        return result

    return made


def _held(argument: Any) -> Any:
    return [*argument] if isinstance(argument, Iterator) else argument


def _again(argument: Any, held: Any) -> Any:
    # Torch tells a generator from other iterators, to warn if it is empty.
    if isinstance(argument, GeneratorType):
        return (item for item in held)
    return iter(held) if isinstance(argument, Iterator) else argument


@contextmanager
def _replaced(owner: Any, name: str, around: Around) -> Iterator[None]:
    original = vars(owner)[name]
    setattr(owner, name, _made_within(original, around))
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def _opened(wrapper: Callable[..., Any], around: Around) -> Iterator[None]:
    """Replace the function that a wrapper calls, whatever names the wrapper has."""
    names = wrapper.__code__.co_freevars
    cell = wrapper.__closure__[names.index("func")]  # type: ignore[index]
    original = cell.cell_contents
    cell.cell_contents = _made_within(original, around)
    try:
        yield
    finally:
        cell.cell_contents = original


def _with_own_step(schedulers: tuple[Any, ...]) -> list[type]:
    """List the classes of schedulers that define a step, all of torch's included."""
    kinds: list[type] = [LRScheduler]
    for kind in kinds:  # which grows meanwhile
        kinds += {*kind.__subclasses__()} - {*kinds}
    for scheduler in schedulers:
        kinds += [kind for kind in type(scheduler).__mro__ if kind not in kinds]
    return [kind for kind in kinds if "step" in vars(kind)]
