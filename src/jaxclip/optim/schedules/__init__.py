"""torch.optim.lr_scheduler as Optax schedules, under torch's names and arguments.

Each function returns a `Schedule`: the count of updates so far → the learning rate, for
the ``learning_rate`` of any optimizer, and so for every place where Optax takes a
schedule. The base learning rate comes first, as torch's schedulers find it in their
optimizer. `reduce_lr_on_plateau`, which learns from a value, is a transformation.

Most loops in torch step a scheduler once an epoch: ``steps_per_epoch=`` says how many
updates that are. The count is in the optimizer's state, so that a run that goes on
needs no more: torch's ``last_epoch`` is the count, over ``steps_per_epoch``.
"""

from jaxclip.optim.schedules._composed import chained_scheduler as chained_scheduler
from jaxclip.optim.schedules._composed import sequential_lr as sequential_lr
from jaxclip.optim.schedules._cosine import cosine_annealing_lr as cosine_annealing_lr
from jaxclip.optim.schedules._cosine import (
    cosine_annealing_warm_restarts as cosine_annealing_warm_restarts,
)
from jaxclip.optim.schedules._cyclic import cyclic_lr as cyclic_lr
from jaxclip.optim.schedules._cyclic import cyclic_momentum as cyclic_momentum
from jaxclip.optim.schedules._lambdas import lambda_lr as lambda_lr
from jaxclip.optim.schedules._lambdas import multiplicative_lr as multiplicative_lr
from jaxclip.optim.schedules._one_cycle import one_cycle_lr as one_cycle_lr
from jaxclip.optim.schedules._one_cycle import one_cycle_momentum as one_cycle_momentum
from jaxclip.optim.schedules._plateau import PlateauState as PlateauState
from jaxclip.optim.schedules._plateau import (
    reduce_lr_on_plateau as reduce_lr_on_plateau,
)
from jaxclip.optim.schedules._schedule import Schedule as Schedule
from jaxclip.optim.schedules._steps import exponential_lr as exponential_lr
from jaxclip.optim.schedules._steps import multi_step_lr as multi_step_lr
from jaxclip.optim.schedules._steps import step_lr as step_lr
from jaxclip.optim.schedules._swa import swa_lr as swa_lr
from jaxclip.optim.schedules._warm_ups import constant_lr as constant_lr
from jaxclip.optim.schedules._warm_ups import linear_lr as linear_lr
from jaxclip.optim.schedules._warm_ups import polynomial_lr as polynomial_lr
