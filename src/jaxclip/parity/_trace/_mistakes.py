"""The mistakes of a training loop, as the order of its events shows them."""

from collections.abc import Iterable, Sequence

from jaxclip.parity._trace._records import Event, LoopWarning


class Mistakes:
    """Watches the events of a loop, and names each kind of mistake once.

    Attributes:
        found: The mistakes so far, each with the first step that showed it.
        spent: Whether no backward pass has come since the optimizer's last step. To
            be kept up to date in steps of which no events are seen, too.
    """

    def __init__(self) -> None:
        """Know of nothing yet."""
        self.found: list[LoopWarning] = []
        self.spent = True
        self._number = 0
        self._stepped = self._scaled = self._scheduled_first = False
        # Gradients that were used already when a backward pass added to them.
        self._stale: Sequence[str] = ()
        # Parameters that had no gradient in any of the optimizer's steps.
        self._never: list[str] | None = None

    def begin(self, number: int) -> None:
        """Begin a step."""
        self._number = number
        self._stepped = self._scaled = self._scheduled_first = False

    def see(self, event: Event) -> None:
        """Take an event into account."""
        # An event of which nothing follows has no method.
        getattr(self, f"_see_{event.kind}", lambda event: None)(event)

    def at_end(self) -> list[LoopWarning]:
        """Name what only the whole run shows."""
        if not self._never:
            return []
        return [
            LoopWarning(
                "never_a_gradient",
                f"No backward() gave a gradient to {_listed(self._never)} of the "
                "optimizer: the loss does not depend on it, or the optimizer has the "
                "parameters of another model.",
                None,
            )
        ]

    def _found(self, code: str, message: str) -> None:
        if all(warning.code != code for warning in self.found):
            self.found.append(LoopWarning(code, message, self._number))

    def _see_scale(self, event: Event) -> None:
        self._scaled = True

    def _see_unscale(self, event: Event) -> None:
        self._scaled = False

    def _see_backward(self, event: Event) -> None:
        if not event.details["finite"]:
            values = _listed(event.details["values"]) or "not finite"
            self._found("loss_not_finite", f"The loss is {values}.")
        # Only a step shows whether the sum is used: the backward pass of another
        # model's loss may go through this one, whose gradients are zeroed later.
        left = event.details["left"]
        if self.spent or not left:
            self._stale = left
        self.spent = False

    def _see_clip_grad_norm(self, event: Event) -> None:
        self._see_clip(event)

    def _see_clip_grad_value(self, event: Event) -> None:
        self._see_clip(event)

    def _see_clip(self, event: Event) -> None:
        name = f"{event.kind}_"
        if not event.details["own"]:
            return  # which is nothing to this optimizer
        if self.spent and self._stepped:
            self._found(
                "clip_after_step",
                f"{name} comes after optimizer.step(), which has used the gradients "
                "unclipped: clip between backward() and optimizer.step().",
            )
        elif self.spent:
            self._found(
                "clip_before_backward",
                f"{name} comes before backward(), which makes gradients that are not "
                "clipped: clip between backward() and optimizer.step().",
            )
        elif self._scaled:
            self._found(
                "clip_while_scaled",
                f"{name} clips gradients that the scaler has scaled, so that the "
                "threshold means something else in each step: call "
                "scaler.unscale_(optimizer) before it.",
            )

    def see_clip_of_others(self, event: Event) -> None:
        """Take a clip into account of parameters that no optimizer updated."""
        self._found(
            "clip_of_other_parameters",
            f"{event.kind}_ clips {_listed(event.details['others'])}, and not one "
            "parameter that the optimizer updates: pass the parameters of the model "
            "that is trained.",
        )

    def _see_grads_changed(self, event: Event) -> None:
        if event.details["how"] == "decayed" and event.details["weight_decay"]:
            self._found(
                "weight_decay_by_hand",
                f"{event.details['factor']:.3g} times the parameters was added to the "
                f"gradients of {_listed(event.details['params'])} by hand, and the "
                f"optimizer adds weight_decay={event.details['weight_decay']:.3g} "
                "times once more: leave one of them out.",
            )

    def _see_params_changed(self, event: Event) -> None:
        if event.details["how"] == "scaled" and event.details["weight_decay"]:
            self._found(
                "weight_decay_by_hand",
                f"{_listed(event.details['params'])} became "
                f"{event.details['factor']:.6g} times what it was outside of "
                "optimizer.step(), and the optimizer has "
                f"weight_decay={event.details['weight_decay']:.3g} as well: leave one "
                "of them out.",
            )

    def _see_scheduler_step(self, event: Event) -> None:
        self._scheduled_first |= not self._stepped

    def _see_optimizer_step_skipped(self, event: Event) -> None:
        self.spent = True
        self._stepped = True

    def _see_optimizer_step(self, event: Event) -> None:
        if self.spent and not event.details["closure"]:
            self._found(
                "step_without_backward",
                "optimizer.step() comes without a backward() before it: the gradients "
                "are those of the step before, or none.",
            )
        if self._stale:
            self._found(
                "grads_not_zeroed",
                "backward() added to gradients that the step before has used already, "
                f"of {_listed(self._stale)}: call optimizer.zero_grad() before it.",
            )
        if self._scheduled_first:
            self._found(
                "scheduler_before_optimizer",
                "scheduler.step() comes before optimizer.step(), so that the first "
                "learning rate is never used: call it after.",
            )
        self.spent = True
        self._stepped = True
        without = event.details["without_gradient"]
        before = without if self._never is None else self._never
        self._never = [name for name in before if name in without]


def _listed(names: Iterable[object]) -> str:
    """Name three things, and say how many more there are."""
    texts = [repr(n) if isinstance(n, str) else str(n) for n in names]
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return ", ".join(texts[:3]) + more
