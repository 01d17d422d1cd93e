"""Brings tokens to the experts that they chose, and the answers back.

Letters here, beside those of `types`: T tokens, K experts that a token chooses,
N places of a buffer that experts read, C places that an expert has for a row,
W = B L.
"""

from functools import partial
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm import sharding
from lm.layers import activations, grouped, linear


def apply(
  x_BLD: jax.Array,
  choices_BLK: jax.Array,
  weights_BLK: jax.Array,
  kernels: dict[str, jax.Array],
  *,
  activation: str,
  capacity: float | None,
  dtype: str,
  compute_dtype: str,
) -> jax.Array:
  """Runs chosen experts: [B, L, D].

  On a mesh each device runs its own experts, for the rows that the axis
  `expert` deals to it and its peers. Dropless: peers give each other all their
  rows and add up what they made of them, since how many tokens an expert gets
  is not known when memory is planned. With a capacity it is, and only what an
  expert reads travels.

  Args:
    x_BLD: what experts read.
    choices_BLK: experts; E is none.
    weights_BLK: of what they say.
    kernels: of `experts.Kernels`.
    activation, dtype, compute_dtype: as in `mlp.Dense`.
    capacity: see `experts.make`; None drops nothing.
  """
  run = partial(
    _dropless if capacity is None else partial(_limited, capacity),
    activation=activation,
    dtype=dtype,
    compute_dtype=linear.floating(compute_dtype),
  )
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return run(x_BLD, choices_BLK, weights_BLK, kernels)

  # Each part of a kernel gives a part of the answer. Tokens are spread over
  # parts, and answers added up, out here: so each way takes one sum.
  parts = sharding.parts('tensor')
  x_TBLD, weights_TBLK = (
    jnp.broadcast_to(x[None], (parts, *x.shape)) for x in (x_BLD, weights_BLK)
  )

  # Kernels are gathered in there, so that the sum of their gradients is cut as
  # it is made: XLA would add them up whole.
  fsdp = None if x_BLD.shape[-1] % sharding.parts('fsdp') else 'fsdp'
  where = {
    name: PartitionSpec(
      'expert', *(('tensor', fsdp) if name == 'down' else (fsdp, 'tensor'))
    )
    for name in kernels
  }

  def local(x_1BLD, choices_BLK, weights_1BLK, kernels):
    if fsdp:
      kernels = {
        name: _whole(kernel, fsdp, where[name].index(fsdp))
        for name, kernel in kernels.items()
      }
    return run(x_1BLD[0], choices_BLK, weights_1BLK[0], kernels)[None]

  place = sharding.spec('batch', 'length', None)
  spread = PartitionSpec('tensor', *place)
  y_TBLD = jax.shard_map(
    local,
    in_specs=(spread, place, spread, where),
    out_specs=spread,
    # What varies over which axis is not tracked: jax 0.10 to 0.12 lose count of
    # it where a pipeline maps stages.
    check_vma=False,
  )(x_TBLD, choices_BLK, weights_TBLK, kernels)
  return jax.lax.reduce_sum(y_TBLD, (0,))


def _dropless(x_BLD, choices_BLK, weights_BLK, kernels, **settings):
  """Sorts tokens by expert and multiplies each group with its kernels."""
  E, K = len(kernels['up']), choices_BLK.shape[-1]
  x_BLD, choices_BLK, weights_BLK = (
    _collect(x, 'expert', 0) for x in (x_BLD, choices_BLK, weights_BLK)
  )
  W = math.prod(choices_BLK.shape[:2])
  N = W * K
  choices_N = choices_BLK.reshape(N) - _place('expert') * E
  mine_N = (choices_N >= 0) & (choices_N < E)
  # What peers' experts read comes last, in no group.
  there_N = jnp.argsort(jnp.where(mine_N, choices_N, E))
  sizes_E = jnp.bincount(jnp.where(mine_N, choices_N, E), length=E)
  places_N = jnp.arange(N)
  back_N = jnp.zeros_like(there_N).at[there_N].set(places_N)
  there_N = jnp.where(places_N < jnp.sum(sizes_E), there_N, N)
  back_N = jnp.where(mine_N, back_N, N)

  def product(x_1ND, kernel_EDF):
    y_NF = grouped.contract(
      x_1ND[0],
      kernel_EDF,
      sizes_E,
      settings['compute_dtype'],
      settings['dtype'],
    )
    return y_NF[None]

  # One group of all tokens.
  y_1WD = _through(
    x_BLD.reshape(1, W, -1),
    weights_BLK.reshape(1, W, K),
    there_N[None],
    back_N.reshape(1, W, K),
    lambda x_1ND: _mlp(x_1ND, kernels, product, settings['activation']),
  )
  y_BLD = y_1WD.reshape(x_BLD.shape).astype(settings['dtype'])
  return _share(y_BLD, 'expert', 0)


def _limited(capacity, x_BLD, choices_BLK, weights_BLK, kernels, **settings):
  """Gives each expert C places for each row, and sends those around.

  Devices that have parts of the same rows take parts of the places.
  """
  parts = _size('sequence')
  x_BLD, choices_BLK, weights_BLK = (
    _collect(x, 'sequence', 1) for x in (x_BLD, choices_BLK, weights_BLK)
  )
  B, L, K = choices_BLK.shape
  E = len(kernels['up']) * _size('expert')
  C = min(math.ceil(capacity * K * L / E), L)
  held = -(-C // parts)
  T, N = L * K, E * held
  choices_BT = choices_BLK.reshape(B, T)
  chosen_BTE = choices_BT[..., None] == jnp.arange(E)[None, None]
  # How many earlier tokens of the row chose what this one did.
  before_BTE = jnp.cumsum(chosen_BTE, axis=1) - 1
  place_BT = jnp.sum(jnp.where(chosen_BTE, before_BTE, 0), axis=-1)
  here_BT = place_BT - _place('sequence') * held
  used_BT = (choices_BT < E) & (place_BT < C)
  used_BT &= (here_BT >= 0) & (here_BT < held)
  back_BT = jnp.where(used_BT, choices_BT * held + here_BT, N)
  there_BN = jnp.full((B, N), T)
  there_BN = there_BN.at[jnp.arange(B)[:, None], back_BT].set(
    jnp.arange(T)[None], mode='drop'
  )

  def product(x_BECD, kernel_EDF):
    return linear.contract(
      'BECD,EDF->BECF',
      x_BECD,
      kernel_EDF,
      settings['compute_dtype'],
      settings['dtype'],
    )

  def run(x_BND):
    x_BECD = _exchange(x_BND.reshape(B, E, held, -1), 1, 0)
    y_BECD = _mlp(x_BECD, kernels, product, settings['activation'])
    return _exchange(y_BECD, 0, 1).reshape(B, N, -1)

  back_BLK = back_BT.reshape(B, L, K)
  y_BLD = _through(x_BLD, weights_BLK, there_BN, back_BLK, run)
  y_BLD = y_BLD.astype(settings['dtype'])
  return _share(y_BLD, 'sequence', 1)


def _mlp(x, kernels, product, activation):
  """Does what `mlp.Dense` does, with kernels of several experts."""
  h = product(x, kernels['up'])
  activate = activations.FUNCTIONS[activation]
  if 'gate' in kernels:
    h *= activate(product(x, kernels['gate']))
  else:
    h = activate(h)
  return product(h, kernels['down'])


def _through(x_BLD, weights_BLK, there_BN, back_BLK, run):
  """Moves tokens to places, runs what stands there, and adds it up by token.

  Args:
    x_BLD: tokens in B groups.
    weights_BLK: of what each of K places says to a token.
    there_BN: which of the L K choices a place serves; L K is none.
    back_BLK: the place that serves a choice; N is none.
    run: [B, N, D] -> [B, N, D].

  Returns:
    float32 [B, L, D]: sums of experts' answers, as wide as their weights.
  """
  x_BND = _spread(x_BLD, there_BN, back_BLK)
  return _join(run(x_BND), weights_BLK, there_BN, back_BLK)


def _take(x, to):
  """Takes rows, or entries, by their numbers; 0 for one past the last."""
  if x.ndim > to.ndim:
    to = to[..., None]
  return jnp.take_along_axis(x, to, axis=1, mode='fill', fill_value=0)


# Gradients of both are written by hand: autodiff would scatter rows, which
# XLA:CPU does one by one. Loops over K, since it sums a dimension that was
# gathered 20 to 200 times slower.


@jax.custom_vjp
def _spread(x_BLD, there_BN, back_BLK):
  """Brings tokens to their places: [B, N, D]."""
  return _take(x_BLD, there_BN // back_BLK.shape[-1])


def _spread_forward(x_BLD, there_BN, back_BLK):
  return _spread(x_BLD, there_BN, back_BLK), back_BLK


def _spread_backward(back_BLK, cotangent_BND):
  B, L, K = back_BLK.shape
  dx_BLD = jnp.zeros((B, L, cotangent_BND.shape[-1]))
  for k in range(K):
    dx_BLD += _take(cotangent_BND, back_BLK[..., k])
  return dx_BLD.astype(cotangent_BND.dtype), None, None


_spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def _join(y_BND, weights_BLK, there_BN, back_BLK):
  """Adds up what places say, by token: float32 [B, L, D]."""
  del there_BN
  B, L, K = back_BLK.shape
  y_BLD = jnp.zeros((B, L, y_BND.shape[-1]))
  for k in range(K):
    y_BLD += weights_BLK[..., k, None] * _take(y_BND, back_BLK[..., k])
  return y_BLD


def _join_forward(y_BND, weights_BLK, there_BN, back_BLK):
  residuals = y_BND, weights_BLK, there_BN, back_BLK
  return _join(*residuals), residuals


def _join_backward(residuals, cotangent_BLD):
  y_BND, weights_BLK, there_BN, back_BLK = residuals
  B, L, K = back_BLK.shape
  weights_BN = _take(weights_BLK.reshape(B, L * K), there_BN)
  dy_BND = weights_BN[..., None] * _take(cotangent_BLD, there_BN // K)
  y_BLKD = _take(y_BND, back_BLK.reshape(B, L * K)).reshape(B, L, K, -1)
  dweights_BLK = jnp.einsum(
    'BLKD,BLD->BLK', y_BLKD.astype(jnp.float32), cotangent_BLD
  )
  return dy_BND.astype(y_BND.dtype), dweights_BLK, None, None


_join.defvjp(_join_forward, _join_backward)


def _mapped() -> bool:
  """Tells whether this is one device's part, inside `jax.shard_map`."""
  return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _size(axis):
  return sharding.parts(axis) if _mapped() else 1


def _place(axis):
  return jax.lax.axis_index(axis) if _mapped() else 0


def _collect(x, axis, dimension):
  """Puts the parts of all peers one after another."""
  if not _mapped():
    return x
  return jax.lax.all_gather(x, axis, axis=dimension, tiled=True)


def _whole(x, axis, dimension):
  """Does what `_collect` does, by way of a dimension in front.

  Of the gradient's sum TPU compilers cut no other one that is not the last.
  """
  parts = jnp.moveaxis(jax.lax.all_gather(x, axis), 0, dimension)
  return parts.reshape(*x.shape[:dimension], -1, *x.shape[dimension + 1 :])


def _share(x, axis, dimension):
  """Adds up what all peers have, and leaves each its part."""
  if not _mapped():
    return x
  return jax.lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True)


def _exchange(x, cut, joined):
  """Gives each peer its part of dimension `cut`."""
  if not _mapped():
    return x
  return jax.lax.all_to_all(x, 'expert', cut, joined, tiled=True)
