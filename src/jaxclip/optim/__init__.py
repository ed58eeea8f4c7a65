"""torch.optim as Optax transformations, under torch's names and arguments."""

from jaxclip.optim import schedules as schedules
from jaxclip.optim._accumulate import AccumulateState as AccumulateState
from jaxclip.optim._accumulate import accumulate as accumulate
from jaxclip.optim._adam import AdamState as AdamState
from jaxclip.optim._adam import adam as adam
from jaxclip.optim._adam import adamw as adamw
from jaxclip.optim._grad_scaler import GradScalerState as GradScalerState
from jaxclip.optim._grad_scaler import grad_scaler as grad_scaler
from jaxclip.optim._grad_scaler import scale_loss as scale_loss
from jaxclip.optim._order import in_torch_order as in_torch_order
from jaxclip.optim._sgd import SGDState as SGDState
from jaxclip.optim._sgd import sgd as sgd
