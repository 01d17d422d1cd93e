"""Recurrent layers: Elman's, LSTM and GRU, over packed documents.

Reference: Elman 1990, Cognitive Science 14; Hochreiter and Schmidhuber 1997,
Neural Computation 9, with the forget gate of Gers et al. 2000; Cho et al. 2014,
arXiv 1406.1078.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm.layers import linear

Carry = dict[str, jax.Array]  # 'h', and 'c' of an LSTM: float32 [B, D]


class Cell(NamedTuple):
  """One step of a recurrence.

  Attributes:
    gates: C, products with the input and with the state.
    names: of the carry's arrays.
    step: `(input [B, C, D], product with h [B, C, D], carry) -> carry`.
  """

  gates: int
  names: tuple[str, ...]
  step: Callable[[jax.Array, jax.Array, Carry], Carry]


def _elman(x_BCD, r_BCD, carry):
  del carry
  return {'h': jnp.tanh(x_BCD + r_BCD)[:, 0]}


def _lstm(x_BCD, r_BCD, carry):
  i, f, g, o = jnp.moveaxis(x_BCD + r_BCD, 1, 0)
  # Forgetting starts half closed: gradients reach far back from the beginning.
  # Reference: Jozefowicz et al. 2015, section 2.2.
  kept = jax.nn.sigmoid(f + 1) * carry['c']
  c = kept + jax.nn.sigmoid(i) * jnp.tanh(g)
  return {'h': jax.nn.sigmoid(o) * jnp.tanh(c), 'c': c}


def _gru(x_BCD, r_BCD, carry):
  # The reset gate scales the product with the state, not the state: one product
  # for all gates, as in cuDNN; the paper's first version multiplies later.
  reset, update = jnp.moveaxis(jax.nn.sigmoid((x_BCD + r_BCD)[:, :2]), 1, 0)
  new = jnp.tanh(x_BCD[:, 2] + reset * r_BCD[:, 2])
  return {'h': (1 - update) * new + update * carry['h']}


CELLS: Mapping[str, Cell] = MappingProxyType(
  {
    'elman': Cell(1, ('h',), _elman),
    'lstm': Cell(4, ('h', 'c'), _lstm),
    'gru': Cell(3, ('h',), _gru),
  }
)


def start(cell: str, batch: int, width: int) -> Carry:
  """Makes the carry before the first token: zeros."""
  return {name: jnp.zeros((batch, width)) for name in CELLS[cell].names}


class Recurrent(nn.Module):
  """A layer of D cells.

  Attributes:
    cell: one of `CELLS`.
    kernel_init: of the kernels [D, C, D] for input and state.
    dtype, compute_dtype: as in `attention.Attention`; the carry is float32.
  """

  cell: str
  kernel_init: nn.initializers.Initializer
  dtype: str
  compute_dtype: str

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    starts_BL: jax.Array,
    live_BL: jax.Array,
    carry: Carry,
    keep_BD: jax.Array | None = None,
  ) -> tuple[jax.Array, Carry]:
    """Returns [B, L, D] and the carry after the last live token.

    Args:
      x_BLD: what the layer reads.
      starts_BL: bool, where a document starts: the carry is forgotten.
      live_BL: bool, False where padding must leave the carry as it is.
      carry: before the first token.
      keep_BD: multiplies the state before its product, the same at all steps:
        variational dropout. Reference: Gal and Ghahramani 2016, arXiv
        1512.05287, section 4.2.
    """
    D, cell = x_BLD.shape[-1], CELLS[self.cell]
    shape = D, cell.gates, D
    kernel_DCD = self.param('input', self.kernel_init, shape)
    state_DCD = self.param('state', self.kernel_init, shape)
    bias_CD = self.param('bias', nn.initializers.zeros, shape[1:])
    # One product for all steps, outside of the loop over them. F is D here.
    x_BLCD = linear.contract(
      'BLD,DCF->BLCF', x_BLD, kernel_DCD, self.compute_dtype, 'float32'
    )
    x_BLCD += bias_CD[None, None]
    # F is C D here: XLA:CPU has no product of bfloat16 for what gradients of
    # the three dimensions need.
    state_DF = state_DCD.reshape(D, -1)

    def step(carry, now):
      x_BCD, starts_B1, live_B1 = now
      clean = {k: jnp.where(starts_B1, 0, v) for k, v in carry.items()}
      h_BD = clean['h'] if keep_BD is None else clean['h'] * keep_BD
      r_BF = linear.contract(
        'BD,DF->BF', h_BD, state_DF, self.compute_dtype, 'float32'
      )
      new = cell.step(x_BCD, r_BF.reshape(x_BCD.shape), clean)
      carry = {k: jnp.where(live_B1, new[k], v) for k, v in carry.items()}
      return carry, new['h'].astype(self.dtype)

    carry, h_LBD = jax.lax.scan(
      step,
      carry,
      (
        jnp.moveaxis(x_BLCD, 1, 0),
        jnp.moveaxis(starts_BL, 1, 0)[..., None],
        jnp.moveaxis(live_BL, 1, 0)[..., None],
      ),
    )
    return jnp.moveaxis(h_LBD, 0, 1), carry
