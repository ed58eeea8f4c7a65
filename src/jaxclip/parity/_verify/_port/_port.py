"""What a user says of a port: the model, the loss, the optimizer, the names."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import optax

from jaxclip.convert import WeightMap


@dataclass(frozen=True)
class Port:
    """A port of a torch model and of its training to JAX.

    Only the structure of the model matters: its weights, and the optimizer's state,
    are taken from the recording, step by step.

    Attributes:
        model: The model: an NNX module; ``(module, variables)`` of a Linen module and
            what its ``init`` returns (what its ``@nn.compact`` methods make is seen
            when ``loss_fn`` calls it); a module of Equinox, or its parameters alone;
            or a tree of parameters, of arrays that lie as torch's do, or as ``axes``
            says.
        loss_fn: ``loss_fn(model, batch)`` returns the loss, a scalar, or ``(loss,
            outputs)``, where the outputs are what the torch model returns, or a list
            of what it returns in each call, if a step calls it several times. The
            batch has the names that were recorded: after ``run.step(x=x, y=y)`` it is
            a dict of ``x`` and ``y``. The model is the NNX module; the tree; or of a
            Linen module a function that calls its ``apply`` with the variables,
            and keeps what that changes in them: ``model(x, train=True)``.
        optimizer: The Optax transformation. If the clip is in it, in a chain, the
            clipped gradients cannot be seen, and are not compared.
        clip: What clips the gradients before ``optimizer`` is given them.
        rename: How torch's names become those of the port, as ``convert.from_torch``
            takes it.
        ignore: Patterns of torch's names to leave out, as it takes them.
        flatten: What a layer is given flattened, as it takes it.
        axes: How arrays lie of which no layer says it, as it takes them: those of a
            ``model`` that is a tree of parameters, ``{"*.w": (1, 0)}``.
        stacked: The paths of modules that hold several layers as one, as it takes them.
        mapping: The map of the weights, if ``convert.mapping`` of the model is not it.
        layouts: How what modules return lies, as ``WeightMap.with_layouts`` takes it;
            a module that holds no weights is compared if it is named here. It says
            of a dropout how its mask lies, too.
        dropouts: The paths of the port's own dropouts, of NNX, Linen or Equinox, by
            those of torch's dropouts whose masks they are given, where their names do
            not say it: ``{"drop": "Dropout_0"}``. Several of torch's may be one of the
            port's, in the order of their calls. ``*`` stands for the number of a
            layer: ``{"blocks.*.drop": "blocks_*.Dropout_0"}``, and where layers are
            stacked ``"blocks.Dropout_0"``. Where torch's dropout is a function, it is
            the module that calls it; one inside of the port's same module needs no
            word. For dropout written by hand see `replayed_mask`, for other random
            numbers `replayed_draw`.

    Raises:
        TypeError: If ``loss_fn`` is no function, or ``optimizer`` or ``clip`` is no
            transformation.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxclip import clip_by_global_norm, optim
        >>> from jaxclip.parity import Port
        >>> def loss_fn(model, batch):
        ...     outputs = model(batch["x"])
        ...     return jnp.mean((outputs - batch["y"]) ** 2), outputs
        >>> port = Port(
        ...     nnx.Linear(3, 1, rngs=nnx.Rngs(0)),
        ...     loss_fn,
        ...     optim.sgd(0.1),
        ...     clip=clip_by_global_norm(1.0),
        ... )
    """

    model: Any
    loss_fn: Callable[[Any, dict[str, Any]], Any]
    optimizer: optax.GradientTransformation
    _: KW_ONLY
    clip: optax.GradientTransformation | None = None
    rename: Any = None
    ignore: Iterable[str] = ()
    flatten: Mapping[str, tuple[int, ...]] | None = None
    axes: Mapping[str, tuple[int | None, ...]] | None = None
    stacked: Iterable[str] = ()
    mapping: WeightMap | None = None
    layouts: Any = None
    dropouts: Mapping[str, str] | None = None

    # Where users import it from, which is what they should see.
    __module__ = "jaxclip.parity"

    def __post_init__(self) -> None:
        """Refuse what cannot be used."""
        if not callable(self.loss_fn):
            raise TypeError(
                f"Port(loss_fn={self.loss_fn!r}): expected a function of the model and "
                "the batch that returns the loss, or (loss, outputs)."
            )
        parts = {"optimizer": self.optimizer}
        if self.clip is not None:
            parts["clip"] = self.clip
        for name, part in parts.items():
            if not isinstance(part, optax.GradientTransformation):
                raise TypeError(
                    f"Port({name}=...): expected an Optax transformation, got "
                    f"{type(part).__name__}."
                )
