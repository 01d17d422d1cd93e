"""The module of an attention: projections, positions, a cache, values."""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm.layers import dot_product, initializers, linear, masks
from lm.layers import positions as positions_lib


class Seen(NamedTuple):
  """Holds all that the layers of one kind of attention need to know of a text.

  Attributes:
    mask_B1LS: bool, True where a query may look; None where `mask` says it.
    mask: of a text that sees itself alone; None for a cache and another text.
    rotation: of queries and keys; None has none.
    bias_BNLS: added to the scores, float32 [B or 1, N, L, S]; None has none.
    values_BSKH: added to the values of this call's tokens; None has none.
    first: the slot of the cache that the first query is written to.
    memory_BSD: the text that a cross-attention reads; None where a cache holds
      its keys and values.
  """

  mask_B1LS: jax.Array | None = None
  mask: masks.AttentionMask | None = None
  rotation: positions_lib.Rotation | None = None
  bias_BNLS: jax.Array | None = None
  values_BSKH: jax.Array | None = None
  first: jax.Array | None = None
  memory_BSD: jax.Array | None = None


class Attention(nn.Module):
  """Projections, positions, QK-norm and a cache around the mixing of values.

  Attributes:
    heads: N.
    kv_heads: K, which divides N.
    head_width: H.
    bias: adds biases to the four projections.
    query_init, kernel_init, output_init: of q, of k and v, and of the output
      projection.
    dtype, compute_dtype: result and operand types of products.
    qk_norm: builds the norm of queries and keys per head before rotation, given
      `name`; None has none. Reference: Dehghani et al. 2023, arXiv 2302.05442,
      section 2.1.
    scale, softcap: see `dot_product.attend`.
    sink: whether a head has a score of its own, see `attention.scores`.
    gate_width: 1 for a gate of a whole head, H for one of its elements, 0 for
      none, see `attention.make`.
    cross: reads keys and values in `Seen.memory_BSD`, not in the stream.
  """

  heads: int
  kv_heads: int
  head_width: int
  bias: bool
  query_init: initializers.Initializer
  kernel_init: initializers.Initializer
  output_init: initializers.Initializer
  dtype: str
  compute_dtype: str
  qk_norm: Callable[..., nn.Module] | None = None
  scale: float | None = None
  softcap: float | None = None
  sink: bool = False
  gate_width: int = 0
  cross: bool = False

  @nn.compact
  def __call__(self, x_BLD, seen: Seen, cache):
    """Returns [B, L, D] and the cache with this call's keys and values.

    `cache` is None, or `k` [X, H, S] and `v` [X, S, H] of
    `dot_product.attend_cache`, where the first of the L positions is written to
    the slot `seen.first`. The memory's keys and values do not change, so a
    cross-attention's cache is what `memory_cache` makes.
    """
    D, N, K, H = x_BLD.shape[-1], self.heads, self.kv_heads, self.head_width

    def project(name, x_BLD, heads):
      init = self.query_init if name == 'q' else self.kernel_init
      kernel_DNH = self.param(name, init, (D, heads, H))
      bias_NH = None
      if self.bias:
        bias_NH = self.param(f'{name}_bias', initializers.ZEROS, (heads, H))
      return _project(
        x_BLD, kernel_DNH, bias_NH, self.compute_dtype, self.dtype
      )

    q_BLNH = project('q', x_BLD, N)
    if self.qk_norm is not None:
      q_BLNH = self.qk_norm(name='q_norm')(q_BLNH)
    if seen.rotation is not None:
      q_BLNH = positions_lib.rope(q_BLNH, seen.rotation)
    k_BKSH = v_BKSH = None
    if not self.cross or cache is None:
      y_BSD = seen.memory_BSD if self.cross else x_BLD
      k_BSKH, v_BSKH = project('k', y_BSD, K), project('v', y_BSD, K)
      if self.qk_norm is not None:
        k_BSKH = self.qk_norm(name='k_norm')(k_BSKH)
      if seen.rotation is not None:
        k_BSKH = positions_lib.rope(k_BSKH, seen.rotation)
      if seen.values_BSKH is not None:
        v_BSKH += seen.values_BSKH.astype(v_BSKH.dtype)
      k_BKSH, v_BKSH = (jnp.einsum('BSKH->BKSH', x) for x in (k_BSKH, v_BSKH))
    y_BLNH, cache = self._mix(q_BLNH, k_BKSH, v_BKSH, seen, cache)
    if self.gate_width:
      shape = D, N, self.gate_width
      kernel_DNH = self.param('gate', self.kernel_init, shape)
      gate_BLNH = _project(
        x_BLD, kernel_DNH, None, self.compute_dtype, self.dtype
      )
      open_BLNH = jax.nn.sigmoid(gate_BLNH.astype(jnp.float32))
      y_BLNH *= open_BLNH.astype(y_BLNH.dtype)
    kernel_NHD = self.param('o', self.output_init, (N, H, D))
    out_BLD = linear.contract(
      'BLNH,NHD->BLD', y_BLNH, kernel_NHD, self.compute_dtype, self.dtype
    )
    if self.bias:
      bias_D = self.param('o_bias', initializers.ZEROS, (D,))
      out_BLD += bias_D.astype(self.dtype)[None, None]
    return out_BLD, cache

  @nn.nowrap
  def _mix(self, q_BLNH, k_BKSH, v_BKSH, seen: Seen, cache):
    """Mixes values: [B, L, N, H] and the new cache."""
    sink_N = None
    if self.sink:
      zeros = initializers.ZEROS
      sink_N = self.param('sink_bias', zeros, (self.heads,))
    settings = {
      'terms': dot_product.Terms(seen.bias_BNLS, sink_N),
      'scale': self.scale,
      'softcap': self.softcap,
      'compute_dtype': linear.floating(self.compute_dtype),
    }
    if seen.mask is not None and seen.mask.whole_B1LS is None:
      assert cache is None
      mixed_BLNH = dot_product.attend_unmasked(
        q_BLNH, k_BKSH, v_BKSH, seen.mask, **settings
      )
      return mixed_BLNH, None
    if cache is None:
      mask = seen.mask_B1LS if seen.mask is None else seen.mask
      assert mask is not None
      mixed_BLNH = dot_product.attend(q_BLNH, k_BKSH, v_BKSH, mask, **settings)
      return mixed_BLNH, None
    assert seen.mask_B1LS is not None
    if not self.cross:
      cache = _write(cache, k_BKSH, v_BKSH, seen.first)
    mixed_BLNH = dot_product.attend_cache(
      q_BLNH, cache['k'], cache['v'], seen.mask_B1LS, **settings
    )
    return mixed_BLNH, cache


def memory_cache(
  params: dict[str, jax.Array],
  memory_BSD: jax.Array,
  compute_dtype: str,
  dtype: str,
) -> dict[str, jax.Array]:
  """Makes the cache of a cross-attention: keys and values of the memory.

  Args:
    params: of an `Attention` without QK-norm.
    memory_BSD: the encoder's output.
    compute_dtype, dtype: those of the module.
  """
  k_BSKH, v_BSKH = (
    _project(
      memory_BSD, params[name], params.get(f'{name}_bias'), compute_dtype, dtype
    )
    for name in 'kv'
  )
  B, S, K, H = k_BSKH.shape
  return {
    'k': jnp.einsum('BSKH->BKHS', k_BSKH).reshape(B * K, H, S),
    'v': jnp.einsum('BSKH->BKSH', v_BSKH).reshape(B * K, S, H),
  }


def _write(cache, k_BKLH, v_BKLH, first):
  B, K, L, H = k_BKLH.shape
  k_XHL = jnp.einsum('BKLH->BKHL', k_BKLH).reshape(B * K, H, L)
  v_XLH = v_BKLH.reshape(B * K, L, H)
  return {
    'k': jax.lax.dynamic_update_slice(cache['k'], k_XHL, (0, 0, first)),
    'v': jax.lax.dynamic_update_slice(cache['v'], v_XLH, (0, first, 0)),
  }


def _project(x_BLD, kernel_DNH, bias_NH, compute_dtype, dtype):
  # As one matrix: a GPU adds the bias while it writes the product.
  D, N, H = kernel_DNH.shape
  y_BLF = linear.contract(
    'BLD,DF->BLF', x_BLD, kernel_DNH.reshape(D, N * H), compute_dtype, dtype
  )
  if bias_NH is not None:
    y_BLF += bias_NH.astype(dtype).reshape(1, 1, N * H)
  return y_BLF.reshape(*y_BLF.shape[:2], N, H)
