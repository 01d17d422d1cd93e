"""Recurrent layers over packed documents: Elman networks, LSTM and GRU.

Letters that differ from `types`: C gates of a cell; F numbers the D cells of a
layer, since a kernel has one dimension for what is read and one for the cells
that read it; X = C F.

References: Elman 1990, Cognitive Science 14; Hochreiter and Schmidhuber 1997,
Neural Computation 9, with the forget gate of Gers et al. 2000; Cho et al. 2014,
arXiv 1406.1078.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import sharding
from lm.layers import blocks, checks, initializers, linear, parts

Carry = dict[str, jax.Array]  # 'h', and 'c' of an LSTM: float32 [B, D]


class Cell(NamedTuple):
  """One step of a recurrence.

  Attributes:
    gates: C, how many products with the input, and with the state, a cell has.
    names: the names of the arrays in the carry.
    step: `(x_BCF, r_BCF, carry) -> carry`, where x is the product with the
      input, r the product with the state h, and the carry of shape [B, F].
  """

  gates: int
  names: tuple[str, ...]
  step: Callable[[jax.Array, jax.Array, Carry], Carry]


def _elman(x_BCF, r_BCF, carry):
  del carry
  return {'h': jnp.tanh(x_BCF + r_BCF)[:, 0]}


def _lstm(x_BCF, r_BCF, carry):
  i, f, g, o = jnp.moveaxis(x_BCF + r_BCF, 1, 0)
  # With 1 added, the forget gate starts at sigmoid(1) = 0.73 and not at 0.5, so
  # that gradients reach far back from the first step of training. Reference:
  # Jozefowicz et al. 2015, section 2.2.
  kept = jax.nn.sigmoid(f + 1) * carry['c']
  c = kept + jax.nn.sigmoid(i) * jnp.tanh(g)
  return {'h': jax.nn.sigmoid(o) * jnp.tanh(c), 'c': c}


def _gru(x_BCF, r_BCF, carry):
  # The reset gate scales the product with the state, as in cuDNN, and not the
  # state itself, as in the paper: so one product serves all three gates.
  reset, update = jnp.moveaxis(jax.nn.sigmoid((x_BCF + r_BCF)[:, :2]), 1, 0)
  new = jnp.tanh(x_BCF[:, 2] + reset * r_BCF[:, 2])
  return {'h': (1 - update) * new + update * carry['h']}


CELLS: Mapping[str, Cell] = MappingProxyType(
  {
    'elman': Cell(1, ('h',), _elman),
    'lstm': Cell(4, ('h', 'c'), _lstm),
    'gru': Cell(3, ('h',), _gru),
  }
)


# Hidden matrices for no optimizer: they hold those of several gates.
ROWS = (
  parts.Row(r'input$', ('embed', None, 'mlp'), 1, 2, hidden=False),
  # The state is needed whole at every step: only its result is cut.
  parts.Row(r'state$', (sharding.WHOLE, None, 'mlp'), 1, 2, hidden=False),
  parts.Row(r'bias$', (None, 'mlp')),
)


class Seen(NamedTuple):
  """Holds all that the layers of a kind need to know of a text.

  Attributes:
    starts_BL: bool, where a document starts: the carry is forgotten.
    live_BL: bool, False where padding must leave the carry as it is.
  """

  starts_BL: jax.Array
  live_BL: jax.Array


def make(*, shared: parts.Shared, cell: str = 'lstm') -> parts.Mixer:
  """Makes a recurrent layer of D cells; the carry is its cache.

  The carry is forgotten where a document starts, and at the edge of a window
  as positions restart there: gradients and states reach one window back.

  Args:
    shared: what the model's parts have in common.
    cell: 'elman', 'lstm' or 'gru'.

  Raises:
    ValueError: for an unknown cell, or in a model that looks to the right.
  """
  checks.check_choices(
    cell=(cell, CELLS), compute_dtype=(shared.compute_dtype, checks.DTYPES)
  )
  if shared.bidirectional:
    raise ValueError(
      'a recurrence sees nothing to its right: not in an encoder'
    )
  D, gates = shared.width, CELLS[cell].gates

  def see(text: parts.Text, initializing: bool) -> Seen:
    del initializing
    if text.prefix is not None:
      raise ValueError('a recurrence sees nothing to its right: no prefix')
    return Seen(text.positions == 0, text.segments > 0)

  def begin(params, text: parts.Text, room: int) -> Carry:
    del params, room  # a carry has room for any length
    return start(cell, len(text.segments), D)

  def flops(length: int) -> float:
    del length
    return 4 * D * gates * D

  build = partial(
    Recurrent,
    cell=cell,
    kernel_init=shared.kernel(),
    dropout=shared.dropout,
    variational=shared.variational,
    dtype=shared.dtype,
    compute_dtype=shared.compute_dtype,
  )
  return parts.Mixer('recurrent', build, see, begin, ROWS, flops)


def start(cell: str, batch: int, width: int) -> Carry:
  """Makes the carry before the first token: zeros [B, D]."""
  return {name: jnp.zeros((batch, width)) for name in CELLS[cell].names}


class Recurrent(nn.Module):
  """A layer of D recurrent cells.

  Attributes:
    cell: one of `CELLS`.
    kernel_init: initializer of the kernels [D, C, F] for input and state.
    dropout: rate on what the layer reads.
    variational: whether all steps share one mask, which drops the state before
      its product, too. Reference: Gal and Ghahramani 2016, arXiv 1512.05287,
      section 4.2.
    dtype: type of the result; the carry is always float32.
    compute_dtype: type that the factors of products are rounded to.
  """

  cell: str
  kernel_init: initializers.Initializer
  dropout: float
  variational: bool
  dtype: str
  compute_dtype: str

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, seen: Seen, cache: Carry | None
  ) -> tuple[jax.Array, Carry | None]:
    """Returns [B, L, D] and the carry after the last live token."""
    B, _, D = x_BLD.shape
    cell = CELLS[self.cell]
    keep_BD = None
    if self.variational and self.dropout:
      keep_BD = blocks.dropout(self, self.dropout, jnp.ones((B, D)))
    # One mask for all steps: they share it along the dimension of time.
    x_BLD = blocks.dropout(
      self, self.dropout, x_BLD, shared=(1,) * self.variational
    )
    carry = start(self.cell, B, D) if cache is None else cache
    shape = D, cell.gates, D
    kernel_DCF = self.param('input', self.kernel_init, shape)
    state_DCF = self.param('state', self.kernel_init, shape)
    bias_CF = self.param('bias', initializers.ZEROS, shape[1:])
    # The input does not depend on the state: one large product for all steps,
    # outside of the loop over them. Only the small one below is in the loop.
    x_BLCF = linear.contract(
      'BLD,DCF->BLCF', x_BLD, kernel_DCF, self.compute_dtype, 'float32'
    )
    x_BLCF += bias_CF[None, None]
    # Gates and cells as one dimension: XLA:CPU has no bfloat16 product for the
    # gradient of a kernel of three dimensions inside a loop.
    state_DX = state_DCF.reshape(D, -1)

    def step(carry, now):
      x_BCF, starts_B1, live_B1 = now
      # A document must not see the state that the previous one left behind.
      clean = {k: jnp.where(starts_B1, 0, v) for k, v in carry.items()}
      h_BD = clean['h'] if keep_BD is None else clean['h'] * keep_BD
      r_BX = linear.contract(
        'BD,DX->BX', h_BD, state_DX, self.compute_dtype, 'float32'
      )
      new = cell.step(x_BCF, r_BX.reshape(x_BCF.shape), clean)
      carry = {k: jnp.where(live_B1, new[k], v) for k, v in carry.items()}
      return carry, new['h'].astype(self.dtype)

    # `scan` runs along the first dimension.
    carry, h_LBF = jax.lax.scan(
      step,
      carry,
      (
        jnp.moveaxis(x_BLCF, 1, 0),
        jnp.moveaxis(seen.starts_BL, 1, 0)[..., None],
        jnp.moveaxis(seen.live_BL, 1, 0)[..., None],
      ),
    )
    return jnp.moveaxis(h_LBF, 0, 1), None if cache is None else carry
