"""The models of ``jaxclip.models`` in Flax Linen, class for class.

Every module makes its parameters and submodules in ``setup()``, so that what it
holds can be seen without running it: ``jaxclip.convert`` needs no example input.
"""

from jaxclip.models.linen._batch_norm import BatchNorm as BatchNorm
from jaxclip.models.linen._bilinear import Bilinear as Bilinear
from jaxclip.models.linen._conv_transpose import ConvTranspose as ConvTranspose
from jaxclip.models.linen._embed import Embed as Embed
from jaxclip.models.linen._gpt import GPT as GPT
from jaxclip.models.linen._multihead_attention import (
    MultiheadAttention as MultiheadAttention,
)
from jaxclip.models.linen._my_linear import MyLinear as MyLinear
from jaxclip.models.linen._my_linear import Sequential as Sequential
from jaxclip.models.linen._my_linear import my_net as my_net
from jaxclip.models.linen._prelu import PReLU as PReLU
from jaxclip.models.linen._recurrent import GRU as GRU
from jaxclip.models.linen._recurrent import LSTM as LSTM
from jaxclip.models.linen._recurrent import RNN as RNN
from jaxclip.models.linen._recurrent_cells import GRUCell as GRUCell
from jaxclip.models.linen._recurrent_cells import LSTMCell as LSTMCell
from jaxclip.models.linen._recurrent_cells import RNNCell as RNNCell
from jaxclip.models.linen._resnet import ResNet as ResNet
from jaxclip.models.linen._rnnlm import RNNLM as RNNLM
from jaxclip.models.linen._rnnlm import RNNLMScratch as RNNLMScratch
from jaxclip.models.linen._spectral_norm import SpectralNorm as SpectralNorm
from jaxclip.models.linen._transformer import (
    TransformerDecoderLayer as TransformerDecoderLayer,
)
from jaxclip.models.linen._transformer import (
    TransformerEncoderLayer as TransformerEncoderLayer,
)
from jaxclip.models.linen._transformer_stacks import (
    TransformerDecoder as TransformerDecoder,
)
from jaxclip.models.linen._transformer_stacks import (
    TransformerEncoder as TransformerEncoder,
)
