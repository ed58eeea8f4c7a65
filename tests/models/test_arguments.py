"""What the models refuse, what they do not, and what they leave alone."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.models import linen


def nnx_call(name, *sizes, **options):
    """Return an NNX model as a function."""
    return getattr(models, name)(*sizes, **options, rngs=nnx.Rngs(0))


def linen_call(name, *sizes, **options):
    """Return a Linen model, with ones for parameters, as a function."""
    module = getattr(linen, name)(*sizes, **options)
    layer = name in ("RNN", "GRU", "LSTM")
    x = jnp.zeros((1, 1, 2)) if layer else jnp.zeros((1, 1), int)
    x = jnp.zeros((1, 2)) if name.endswith("Cell") else x
    inputs = [jnp.zeros((1, 1, 6))] * 3 if name == "MultiheadAttention" else [x]
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    variables = jax.tree.map(lambda array: jnp.ones(array.shape), shapes)
    return partial(module.apply, variables)


BOTH = pytest.mark.parametrize("build", [nnx_call, linen_call])


@BOTH
@pytest.mark.parametrize("name", ["RNNLM", "RNNLMScratch"])
@pytest.mark.parametrize("shape", [(3,), (2, 0), (1, 2, 3)])
def test_tokens_of_another_shape_are_refused(build, name, shape):
    with pytest.raises(ValueError, match=r"tokens has shape .* must be \(B, T\)"):
        build(name, 5, 4)(jnp.zeros(shape, int))


@BOTH
@pytest.mark.parametrize("name", ["RNNLM", "RNNLMScratch"])
def test_tokens_that_are_no_integers_are_refused(build, name):
    with pytest.raises(TypeError, match="tokens has dtype float32; it must be int"):
        build(name, 5, 4)(jnp.zeros((2, 3)))


@BOTH
@pytest.mark.parametrize("name", ["RNNLM", "RNNLMScratch"])
def test_a_token_outside_the_vocabulary_gives_nan(build, name):
    logits, _ = build(name, 5, 4)(jnp.array([[0, 1, 5], [0, 1, 4]]))
    assert np.isnan(logits[0, 2]).all()
    assert np.isfinite(logits[0, :2]).all()
    assert np.isfinite(logits[1]).all()


@BOTH
def test_a_state_for_another_batch_is_refused(build):
    tokens = jnp.zeros((2, 3), int)
    match = r"state has shape \(1, 3, 4\); .* \(num_layers, B, H\) = \(1, 2, 4\)"
    with pytest.raises(ValueError, match=match):
        build("RNNLM", 5, 4)(tokens, jnp.zeros((1, 3, 4)))
    match = r"state\[1\] has shape \(1, 2, 5\)"
    with pytest.raises(ValueError, match=match):
        build("RNNLM", 5, 4, "lstm")(
            tokens, (jnp.zeros((1, 2, 4)), jnp.zeros((1, 2, 5)))
        )
    match = r"state has shape \(3, 4\); .* \(B, H\) = \(2, 4\)"
    with pytest.raises(ValueError, match=match):
        build("RNNLMScratch", 5, 4)(tokens, jnp.zeros((3, 4)))


@BOTH
def test_a_state_for_another_cell_is_refused(build):
    tokens, h = jnp.zeros((2, 3), int), jnp.zeros((1, 2, 4))
    with pytest.raises(ValueError, match=r"1 array\(s\); .* a pair \(h, c\)"):
        build("RNNLM", 5, 4, "lstm")(tokens, h)
    with pytest.raises(ValueError, match=r"2 array\(s\); .* one array h"):
        build("RNNLM", 5, 4, "gru")(tokens, (h, h))


@BOTH
def test_a_state_of_another_dtype_is_refused_rather_than_promoted(build):
    match = r"state has dtype bfloat16, the parameters have float32: .*astype\('flo"
    with pytest.raises(ValueError, match=match):
        build("RNNLM", 5, 4)(jnp.zeros((2, 3), int), jnp.zeros((1, 2, 4), "bfloat16"))


@BOTH
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_inputs_that_do_not_fit_a_recurrent_layer_are_refused(build, name):
    layer = build(name, 2, 4)
    for shape in [(3, 2), (1, 0, 2), (1, 3, 4)]:
        with pytest.raises(ValueError, match=r"x has shape .* must be \(B, T, 2\)"):
            layer(jnp.zeros(shape))
    with pytest.raises(ValueError, match="x has dtype bfloat16, the parameters ha"):
        layer(jnp.zeros((1, 3, 2), "bfloat16"))


@BOTH
def test_inputs_and_states_that_do_not_fit_an_option_are_refused(build):
    layer = build("GRU", 2, 4, batch_first=False, bidirectional=True)
    match = r"x has shape \(0, 1, 2\); it must be \(T, B, 2\), time first.* x\[:, None"
    with pytest.raises(ValueError, match=match):
        layer(jnp.zeros((0, 1, 2)))
    match = r"state has shape \(1, 3, 4\); .* \(2 \* num_layers, B, H\) = \(2, 3, 4\)"
    with pytest.raises(ValueError, match=match):
        layer(jnp.zeros((5, 3, 2)), jnp.zeros((1, 3, 4)))
    layer = build("LSTM", 2, 4, proj_size=3)
    x, h, c = jnp.zeros((1, 5, 2)), jnp.zeros((1, 1, 3)), jnp.zeros((1, 1, 4))
    with pytest.raises(ValueError, match=r"state\[0\] has shape \(1, 1, 4\);"):
        layer(x, (c, h))


@BOTH
@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_inputs_and_states_that_do_not_fit_a_cell_are_refused(build, name):
    cell = build(name, 2, 4)
    for shape in [(2,), (1, 1, 2), (1, 3)]:
        with pytest.raises(ValueError, match=r"x has shape .* must be \(B, 2\)\. A s"):
            cell(jnp.zeros(shape))
    with pytest.raises(ValueError, match="x has dtype bfloat16, the parameters ha"):
        cell(jnp.zeros((1, 2), "bfloat16"))
    state = jnp.zeros((2, 4))
    match = r"has shape \(2, 4\); for this batch it must be \(B, H\) = \(1, 4\)"
    with pytest.raises(ValueError, match=match):
        cell(jnp.zeros((1, 2)), (state, state) if name == "LSTMCell" else state)
    with pytest.raises(ValueError, match=r"3 array\(s\); this cell remembers"):
        cell(jnp.zeros((1, 2)), (state,) * 3)


@BOTH
def test_inputs_that_do_not_fit_attention_are_refused(build):
    attend, x = build("MultiheadAttention", 6, 2), jnp.zeros((2, 3, 6))
    with pytest.raises(ValueError, match=r"query has shape \(3, 6\); .*query\[None\]"):
        attend(x[0], x, x)
    with pytest.raises(ValueError, match=r"value has shape .* must be \(B, T, 6\)"):
        attend(x, x, x[..., :5])
    with pytest.raises(ValueError, match="key has dtype bfloat16, the parameters have"):
        attend(x, x.astype("bfloat16"), x)
    match = "hold 2, 1 and 2 sequences, key and value of 3 and 3 steps; all three must"
    with pytest.raises(ValueError, match=match):
        attend(x, x[:1], x)
    with pytest.raises(ValueError, match=r"of 2 and 3 steps; .* every key needs a val"):
        attend(x, x[:, :2], x)


@BOTH
def test_masks_that_are_none_are_refused(build):
    attend, x = build("MultiheadAttention", 6, 2), jnp.zeros((2, 3, 6))
    match = r"attn_mask has dtype int32; it must be bool, where True blocks .* pass ~m"
    with pytest.raises(TypeError, match=match):
        attend(x, x, x, attn_mask=jnp.zeros((3, 3), int))
    match = r"attn_mask has shape \(2, 3, 3\); it must be \(3, 3\) or \(4, 3, 3\)"
    with pytest.raises(ValueError, match=match):
        attend(x, x, x, attn_mask=jnp.zeros((2, 3, 3), bool))
    match = r"key_padding_mask has shape \(3, 2\); it must be \(2, 3\)"
    with pytest.raises(ValueError, match=match):
        attend(x, x, x, key_padding_mask=jnp.zeros((3, 2), bool))
    with pytest.raises(
        ValueError, match="attn_mask has dtype bfloat16, the parameters"
    ):
        attend(x, x, x, attn_mask=jnp.zeros((3, 3), "bfloat16"))


@BOTH
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_heads": 4}, "num_heads is 4; it must divide embed_dim, which is 6"),
        ({"num_heads": 0}, "num_heads is 0; it must be at least 1"),
        ({"num_heads": 2, "kdim": 0}, "kdim is 0; it must be at least 1"),
        ({"num_heads": 2, "dropout": 2.0}, "dropout is 2.0; it must be from 0 to 1"),
    ],
)
def test_attention_that_does_not_exist_is_refused(build, options, match):
    with pytest.raises(ValueError, match=match):
        build("MultiheadAttention", 6, **options)


@BOTH
@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("RNN", {"nonlinearity": "gelu"}, "nonlinearity is 'gelu'; it must be one of"),
        ("RNNCell", {"nonlinearity": ""}, "nonlinearity is ''; it must be one of 'tan"),
        ("LSTM", {"proj_size": 4}, "proj_size is 4; it must be below hidden_size, wh"),
        ("LSTM", {"proj_size": -1}, "proj_size is -1; it must be below hidden_size"),
        ("GRU", {"dropout": 1.5}, "dropout is 1.5; it must be from 0 to 1"),
        ("GRU", {"dropout": -0.5}, "dropout is -0.5; it must be from 0 to 1"),
    ],
)
def test_options_that_do_not_exist_are_refused(build, name, options, match):
    with pytest.raises(ValueError, match=match):
        build(name, 2, 4, **options)


@BOTH
@pytest.mark.parametrize(
    ("name", "sizes", "match"),
    [
        ("RNNLM", (0, 4), "vocab_size is 0; it must be at least 1"),
        ("RNNLM", (5, 0), "hidden_size is 0; it must be at least 1"),
        ("RNNLM", (5, 4, "gru", 0), "num_layers is 0; it must be at least 1"),
        ("RNNLM", (5, 4, "GRU"), "cell is 'GRU'; it must be one of 'rnn', 'gru', 'lst"),
        ("RNNLMScratch", (0, 4), "vocab_size is 0; it must be at least 1"),
        ("RNNLMScratch", (5, 0), "hidden_size is 0; it must be at least 1"),
        ("LSTM", (0, 4), "input_size is 0; it must be at least 1"),
        ("LSTM", (2, 0), "hidden_size is 0; it must be at least 1"),
        ("LSTM", (2, 4, 0), "num_layers is 0; it must be at least 1"),
        ("LSTMCell", (2, 0), "hidden_size is 0; it must be at least 1"),
    ],
)
def test_sizes_and_cells_that_do_not_exist_are_refused(build, name, sizes, match):
    with pytest.raises(ValueError, match=match):
        build(name, *sizes)


@pytest.mark.parametrize("package", [models, linen])
def test_the_gpt_and_the_resnet_refuse_what_does_not_fit(package):
    rngs = {"rngs": nnx.Rngs(0)} if package is models else {}

    def call(name, *sizes, inputs, **mode):
        model = getattr(package, name)(*sizes, **rngs)
        if package is models:
            return model(inputs)
        return model.init(jax.random.key(0), inputs, **mode)

    tokens, images = jnp.zeros((1, 4), int), jnp.zeros((1, 4, 4, 3))
    with pytest.raises(
        ValueError, match="n_head is 4; it must divide n_embd, which is"
    ):
        call("GPT", 5, 4, 6, 4, 1, inputs=tokens)
    with pytest.raises(ValueError, match="n_layer is 0; it must be at least 1"):
        call("GPT", 5, 4, 6, 2, 0, inputs=tokens)
    match = r"tokens has shape \(1, 4\); a sequence may have 3 tokens at most"
    with pytest.raises(ValueError, match=match):
        call("GPT", 5, 3, 6, 2, 1, inputs=tokens)
    with pytest.raises(ValueError, match="depth is 0; it must be at least 1"):
        call("ResNet", 3, 5, (2,), 0, inputs=images, train=False)
    with pytest.raises(ValueError, match="the number of widths is 0; it must be at"):
        call("ResNet", 3, 5, (), inputs=images, train=False)


def test_a_name_that_cannot_be_a_part_of_a_path_is_refused():
    for name in ["", "a.b"]:
        match = f"layers has the name {name!r}; a name is a non-empty string without"
        with pytest.raises(ValueError, match=match):
            models.Sequential({name: nnx.relu})
        with pytest.raises(ValueError, match=match):
            linen.Sequential({name: nn.relu})
    with pytest.raises(ValueError, match="'names', which is already an attribute"):
        models.Sequential({"names": nnx.relu})


def test_linen_layers_keep_their_names_inside_another_module():
    class Outer(nn.Module):
        def setup(self):
            self.net = linen.my_net()

        def __call__(self, x):
            return self.net(x)

    variables = jax.eval_shape(Outer().init, jax.random.key(0), jnp.zeros(4))
    params = variables["params"]
    assert sorted(params["net"]) == ["1", "3"]
    assert sorted(params["net"]["1"]) == ["bias", "fc", "weight"]


def test_linen_layers_keep_the_dict_that_they_came_in():
    layer = nn.Dense(2)
    layers = {"a": layer}
    linen.Sequential(layers)
    assert layers["a"] is layer
    assert layer.name is None


def test_models_leave_torch_alone():
    check = "sys.exit('torch' in sys.modules)"
    imports = "import sys, jaxclip.models.linen, jaxclip.models"
    assert python(f"{imports}; {check}") == 0
    # And the check can fail.
    assert python(f"import sys; sys.modules['torch'] = sys; {check}") == 1


def python(code):
    """Run code in a fresh interpreter, and return its exit status."""
    return subprocess.run([sys.executable, "-c", code], check=False).returncode
