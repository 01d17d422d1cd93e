"""Token cross-entropy with exact weights, for any size of vocabulary."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm import config, sharding, types

Head = Callable[[jax.Array], jax.Array]


def make(
  *, z_weight: float = 0.0, smoothing: float = 0.0, chunks: int = 1
) -> Callable[[types.Output, types.Batch, Head | None], types.Metric]:
  """Makes the training loss of `step.train_step`.

  Args:
    z_weight, smoothing: as of `token_loss`.
    chunks: above 1, that many parts of each row are scored one after another,
      see `chunked_loss`; it divides a row's positions on a device. It costs
      nothing but small products, so make it as large as memory asks for.

  Raises:
    ValueError: for settings out of range.
  """
  if smoothing >= 1:
    raise ValueError(f'smoothing={smoothing} must be below 1')
  if chunks < 1:
    raise ValueError(f'chunks={chunks} must be at least 1')
  settings = {'z_weight': z_weight, 'smoothing': smoothing}

  def score(out, batch, head):
    if chunks == 1:
      return token_loss(out.logits, batch, **settings)
    if head is None:
      raise config.ConfigError(
        f'chunks={chunks}: this model has no output layer that could be '
        'applied to a part of a row: use chunks=1'
      )
    return chunked_loss(head, out.hidden, batch, chunks=chunks, **settings)

  return score


def token_loss(
  logits: jax.Array,
  batch: types.Batch,
  *,
  z_weight: float = 0.0,
  smoothing: float = 0.0,
) -> types.Metric:
  """Sums the weighted cross-entropy of a batch, in nats.

  Args:
    logits: [B, L, V].
    batch: its `targets` [B, L] are scored with `weights` [B, L].
    z_weight: adds `z_weight * log(Z)^2` a token, which keeps the softmax
      normalizer near 1. Reference: PaLM, arXiv 2204.02311, section 5.
    smoothing: mass taken from the target and spread over all V classes.
      Reference: Szegedy et al. 2015, arXiv 1512.00567, section 7.
  """
  nats_BL = cross_entropy(logits, batch.targets, z_weight, smoothing)
  return types.Metric(jnp.sum(nats_BL * batch.weights), jnp.sum(batch.weights))


def chunked_loss(
  head: Head,
  hidden_BLD: jax.Array,
  batch: types.Batch,
  *,
  chunks: int,
  z_weight: float = 0.0,
  smoothing: float = 0.0,
) -> types.Metric:
  """Sums as `token_loss(head(hidden_BLD), batch)`, a part of a row at a time.

  Logits and their gradient are of L / chunks positions, never of all. Gradients
  are taken in the forward pass, while the logits are there, so that no product
  is computed twice; weights have none.

  Args:
    head: a `jax.tree_util.Partial` with its parameters, `hidden -> logits`.
    hidden_BLD: what it reads.
    batch, z_weight, smoothing: as of `token_loss`.
    chunks: how many; each device has L / chunks of its own positions in each.

  Raises:
    config.ConfigError: the positions do not divide.

  Reference: Hsu et al. 2024, arXiv 2410.10989, section 3.2.
  """
  params, rest = _parameters(head, hidden_BLD)

  def total(params, x_BMD, targets_BM, weights_BM):
    logits_BMV = rest(params)(x_BMD)
    nats_BM = cross_entropy(logits_BMV, targets_BM, z_weight, smoothing)
    return jnp.sum(nats_BM * weights_BM)

  nats = _chunked(
    total, chunks, params, hidden_BLD, batch.targets, batch.weights
  )
  return types.Metric(nats, jnp.sum(batch.weights))


def _parameters(head, x_BLD):
  """Finds the parameters that a head reads, and how to put others in place.

  A model's head holds all of its parameters: a gradient for each would be as
  large as they are.
  """
  leaves, treedef = jax.tree.flatten(head)
  traced = jax.make_jaxpr(lambda *leaves: treedef.unflatten(leaves)(x_BLD))(
    *leaves
  ).jaxpr
  read = {id(x) for step in traced.eqns for x in step.invars}
  places = [i for i, x in enumerate(traced.invars) if id(x) in read]

  def rest(params):
    new = dict(zip(places, params, strict=True))
    return treedef.unflatten(new.get(i, x) for i, x in enumerate(leaves))

  return [leaves[i] for i in places], rest


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(total, chunks, params, hidden_BLD, targets_BL, weights_BL):
  """Adds up `total(params, hidden, targets, weights)` over chunks."""

  def run(params, *arrays):
    parts = _split(chunks, arrays)
    return jnp.sum(jax.lax.map(lambda x: total(params, *x), parts)), ()

  return _on_each_device(run, params, hidden_BLD, targets_BL, weights_BL)[0]


def _chunked_forward(total, chunks, params, *arrays):
  def run(params, *arrays):
    def step(sums, part):
      value, (dparams, dx_BMD) = jax.value_and_grad(total, argnums=(0, 1))(
        params, *part
      )
      return jax.tree.map(jnp.add, sums, (value, dparams)), dx_BMD

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    sums, dx_CBMD = jax.lax.scan(step, zeros, _split(chunks, arrays))
    return sums, jnp.moveaxis(dx_CBMD, 0, 2).reshape(arrays[0].shape)

  (value, dparams), dhidden_BLD = _on_each_device(run, params, *arrays)
  return value, (dparams, dhidden_BLD)


def _chunked_backward(total, chunks, residuals, cotangent):
  del total, chunks
  scaled = jax.tree.map(lambda x: (x * cotangent).astype(x.dtype), residuals)
  return *scaled, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _split(chunks, arrays):
  """Deals positions to chunks, strided: [B, L, ...] to [C, B, L / C, ...]."""
  B, L = arrays[0].shape[:2]
  if L % chunks:
    raise config.ConfigError(
      f'chunks={chunks} does not divide the {L} positions of a row that a '
      'device has: change chunks or length'
    )
  return jax.tree.map(
    lambda x: jnp.moveaxis(
      x.reshape(B, L // chunks, chunks, *x.shape[2:]), 2, 0
    ),
    arrays,
  )


def _on_each_device(fn, params, *arrays):
  """Calls `fn(params, *arrays) -> sums, rows` on each device's rows.

  Parameters are collected, and sums added up over devices, once. Outside of
  `shard_map` the compiler does both for each chunk.
  """
  B, L = arrays[0].shape[:2]
  rows = sharding.free(*sharding.BATCH)
  texts = sharding.free('sequence')
  axes = rows + texts
  if B % sharding.parts(*rows) or L % sharding.parts(*texts):
    axes = ()
  if sharding.parts(*axes) == 1:
    return fn(params, *arrays)

  def local(params, *arrays):
    sums, rows = fn(params, *arrays)
    return jax.lax.psum(sums, axes), rows

  place = PartitionSpec(rows, texts)
  return jax.shard_map(
    local,
    in_specs=(PartitionSpec(), *(place for _ in arrays)),
    out_specs=(PartitionSpec(), place),
    axis_names=set(axes),
    # Gradients of what all devices share are added up here, not by autodiff.
    check_vma=False,
  )(params, *arrays)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def cross_entropy(
  logits_BLV: jax.Array,
  targets_BL: jax.Array,
  z_weight: float = 0.0,
  smoothing: float = 0.0,
) -> jax.Array:
  """Scores each position: float32 [B, L], in nats.

  The gradient is written by hand: softmax minus target in one pass over the
  logits, where autodiff would scatter into a zero tensor as large as they are.
  """
  return _forward(logits_BLV, targets_BL, z_weight, smoothing)[0]


def _forward(logits_BLV, targets_BL, z_weight, smoothing):
  # A sum over a vocabulary in bfloat16 keeps two digits; always float32.
  wide_BLV = logits_BLV.astype(jnp.float32)
  log_z_BL = jax.lax.platform_dependent(
    wide_BLV, cuda=_log_sum_exp, default=partial(jax.nn.logsumexp, axis=-1)
  )
  score_BL = jnp.take_along_axis(wide_BLV, targets_BL[..., None], -1)[..., 0]
  nats_BL = log_z_BL - (1 - smoothing) * score_BL
  if smoothing:
    nats_BL -= smoothing * jnp.mean(wide_BLV, axis=-1)
  if z_weight:
    nats_BL += z_weight * jnp.square(log_z_BL)
  return nats_BL, (logits_BLV, targets_BL, log_z_BL)


def _log_sum_exp(x_BLV):
  """Reads the logits once, where the maximum and then the sum read them twice.

  Reference: Milakov and Gimelshein 2018, arXiv 1805.02867, section 3.
  """

  def join(one, other):
    (high, many), (low, few) = one, other
    # One exponential for each: of the two, the greater has a factor of 1.
    small = jnp.exp(-jnp.abs(high - low))
    total = jnp.where(high > low, many + few * small, many * small + few)
    return jnp.maximum(high, low), total

  # Finite, or two of them would make a nan.
  start = jnp.finfo(jnp.float32).min, jnp.zeros(())
  highest_BL, sum_BL = jax.lax.reduce(
    (x_BLV, jnp.ones_like(x_BLV)), start, join, (2,)
  )
  return highest_BL + jnp.log(sum_BL)


def _backward(z_weight, smoothing, residuals, cotangent_BL):
  logits_BLV, targets_BL, log_z_BL = residuals
  wide_BLV = logits_BLV.astype(jnp.float32)
  grad_BLV = jnp.exp(wide_BLV - log_z_BL[..., None])
  if z_weight:
    grad_BLV *= (1 + 2 * z_weight * log_z_BL)[..., None]
  hit_BLV = _one_hot(targets_BL, logits_BLV)
  grad_BLV -= jnp.where(hit_BLV, 1 - smoothing, 0)
  if smoothing:
    grad_BLV -= smoothing / logits_BLV.shape[-1]
  return (grad_BLV * cotangent_BL[..., None]).astype(logits_BLV.dtype), None


cross_entropy.defvjp(_forward, _backward)


def _one_hot(targets_BL, logits_BLV):
  # A comparison with an iota fuses into the loop that reads the logits.
  ids_11V = jax.lax.broadcasted_iota(jnp.int32, (1, 1, logits_BLV.shape[-1]), 2)
  return ids_11V == targets_BL[..., None]
