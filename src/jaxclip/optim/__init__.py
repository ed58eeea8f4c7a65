"""torch.optim as Optax transformations, under torch's names and arguments.

Each optimizer is a function of torch's arguments, with torch's defaults, and what it
keeps of the parameters has torch's names. `schedules` has the learning rate schedulers;
`in_torch_order` puts clip, decay, accumulation and loss scaling into the order of a
torch loop. There is no SparseAdam: gradients in JAX are not sparse.
"""

from jaxclip.optim import schedules as schedules
from jaxclip.optim._accumulate import AccumulateState as AccumulateState
from jaxclip.optim._accumulate import accumulate as accumulate
from jaxclip.optim._adadelta import AdadeltaState as AdadeltaState
from jaxclip.optim._adadelta import adadelta as adadelta
from jaxclip.optim._adafactor import AdafactorState as AdafactorState
from jaxclip.optim._adafactor import adafactor as adafactor
from jaxclip.optim._adagrad import AdagradState as AdagradState
from jaxclip.optim._adagrad import adagrad as adagrad
from jaxclip.optim._adam import AdamState as AdamState
from jaxclip.optim._adam import adam as adam
from jaxclip.optim._adam import adamw as adamw
from jaxclip.optim._adamax import AdamaxState as AdamaxState
from jaxclip.optim._adamax import adamax as adamax
from jaxclip.optim._asgd import ASGDState as ASGDState
from jaxclip.optim._asgd import asgd as asgd
from jaxclip.optim._grad_scaler import GradScalerState as GradScalerState
from jaxclip.optim._grad_scaler import grad_scaler as grad_scaler
from jaxclip.optim._grad_scaler import scale_loss as scale_loss
from jaxclip.optim._lbfgs import LBFGSState as LBFGSState
from jaxclip.optim._lbfgs import lbfgs as lbfgs
from jaxclip.optim._muon import MuonState as MuonState
from jaxclip.optim._muon import muon as muon
from jaxclip.optim._nadam import NAdamState as NAdamState
from jaxclip.optim._nadam import nadam as nadam
from jaxclip.optim._order import in_torch_order as in_torch_order
from jaxclip.optim._radam import RAdamState as RAdamState
from jaxclip.optim._radam import radam as radam
from jaxclip.optim._rmsprop import RMSpropState as RMSpropState
from jaxclip.optim._rmsprop import rmsprop as rmsprop
from jaxclip.optim._rprop import RpropState as RpropState
from jaxclip.optim._rprop import rprop as rprop
from jaxclip.optim._sgd import SGDState as SGDState
from jaxclip.optim._sgd import sgd as sgd
