"""Prove that two frameworks compute the same, and say where they do not."""

from jaxclip.parity._arrays import ulp_distance as ulp_distance
from jaxclip.parity._comparison import ParityError as ParityError
from jaxclip.parity._comparison import TensorComparison as TensorComparison
from jaxclip.parity._comparison import TreeComparison as TreeComparison
from jaxclip.parity._noise import assert_trees_close as assert_trees_close
from jaxclip.parity._noise import assert_trees_equal as assert_trees_equal
from jaxclip.parity._noise import compare_to_noise as compare_to_noise
from jaxclip.parity._noise import compare_trees as compare_trees
from jaxclip.parity._record import record as record
from jaxclip.parity._trace._digest import Digest as Digest
from jaxclip.parity._trace._digest import digest as digest
from jaxclip.parity._trace._json import TraceError as TraceError
from jaxclip.parity._trace._reader import Trace as Trace
from jaxclip.parity._trace._reader import open_trace as open_trace
from jaxclip.parity._trace._records import STAGES as STAGES
from jaxclip.parity._trace._records import Event as Event
from jaxclip.parity._trace._records import LoopWarning as LoopWarning
from jaxclip.parity._trace._records import ModuleRecord as ModuleRecord
from jaxclip.parity._trace._records import Run as Run
from jaxclip.parity._trace._step import Activation as Activation
from jaxclip.parity._trace._step import Step as Step
from jaxclip.parity._verify._comparing import compare as compare
from jaxclip.parity._verify._port import Port as Port
from jaxclip.parity._verify._replay import replayed_mask as replayed_mask
from jaxclip.parity._verify._report import Report as Report
from jaxclip.parity._verify._verifying import verify as verify
