"""torch.optim as Optax transformations, under torch's names and arguments."""

from jaxclip.optim import schedules as schedules
from jaxclip.optim._adafactor import AdafactorState as AdafactorState
from jaxclip.optim._adafactor import adafactor as adafactor
from jaxclip.optim._adam import AdamState as AdamState
from jaxclip.optim._adam import adam as adam
from jaxclip.optim._adam import adamw as adamw
from jaxclip.optim._muon import MuonState as MuonState
from jaxclip.optim._muon import muon as muon
from jaxclip.optim._sgd import SGDState as SGDState
from jaxclip.optim._sgd import sgd as sgd
