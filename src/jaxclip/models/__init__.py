"""Flax mirrors of the models in ``torchref``, class for class, and of torch's layers.

The classes here are Flax NNX; ``jaxclip.models.linen`` has the same ones in Linen.
Names, shapes and parameter paths are torch's as far as Flax lets them be. A layer is
here where Flax's own has no place for what torch's holds, or computes something else;
``init`` makes Flax's own layers start as torch's do. ``jaxclip.convert`` loads torch's
weights into all of them.
"""

from jaxclip.models import init as init
from jaxclip.models._batch_norm import BatchNorm as BatchNorm
from jaxclip.models._bilinear import Bilinear as Bilinear
from jaxclip.models._conv_transpose import ConvTranspose as ConvTranspose
from jaxclip.models._embed import Embed as Embed
from jaxclip.models._gpt import GPT as GPT
from jaxclip.models._multihead_attention import MultiheadAttention as MultiheadAttention
from jaxclip.models._my_linear import MyLinear as MyLinear
from jaxclip.models._my_linear import Sequential as Sequential
from jaxclip.models._my_linear import my_net as my_net
from jaxclip.models._prelu import PReLU as PReLU
from jaxclip.models._recurrent import GRU as GRU
from jaxclip.models._recurrent import LSTM as LSTM
from jaxclip.models._recurrent import RNN as RNN
from jaxclip.models._recurrent_cells import GRUCell as GRUCell
from jaxclip.models._recurrent_cells import LSTMCell as LSTMCell
from jaxclip.models._recurrent_cells import RNNCell as RNNCell
from jaxclip.models._resnet import ResNet as ResNet
from jaxclip.models._rnnlm import RNNLM as RNNLM
from jaxclip.models._rnnlm import RNNLMScratch as RNNLMScratch
from jaxclip.models._spectral_norm import SpectralNorm as SpectralNorm
from jaxclip.models._transformer import (
    TransformerDecoderLayer as TransformerDecoderLayer,
)
from jaxclip.models._transformer import (
    TransformerEncoderLayer as TransformerEncoderLayer,
)
from jaxclip.models._transformer_stacks import TransformerDecoder as TransformerDecoder
from jaxclip.models._transformer_stacks import TransformerEncoder as TransformerEncoder
from jaxclip.models._weight_norm import WeightNorm as WeightNorm
