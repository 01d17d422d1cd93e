"""Token cross-entropy with exact weights, for any size of vocabulary.

Where a row is scored in chunks, M numbers chunks and l the positions in one.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm import config, sharding, types

_SCORES = 2**22  # in a chunk, on a CPU; see `_chunks`
_ROWS = 128  # positions in a chunk, at least
_MOST = 8  # chunks

Head = Callable[[jax.Array], jax.Array]


def make(
  *, z_weight: float = 0.0, smoothing: float = 0.0, chunks: int | None = None
) -> Callable[[types.Output, types.Batch, Head | None], types.Metric]:
  """Makes the training loss that `step.train_step` minimizes.

  Args:
    z_weight: weight of the z-loss, see `token_loss`.
    smoothing: label smoothing, see `token_loss`.
    chunks: how many parts of each row are scored one after another, see
      `chunked_loss`; 1 scores a row at once. It must divide the positions of a
      row that a device holds. More chunks need less memory, and cost nothing
      until products become too small to be efficient. None scores a row at once
      on GPU and TPU, and on a CPU in up to 8 chunks that fit its caches.

  Raises:
    ValueError: a setting is out of range. Scoring raises it where targets and
      outputs differ in shape.
  """
  if smoothing >= 1:
    raise ValueError(f'smoothing={smoothing} must be below 1')
  if chunks is not None and chunks < 1:
    raise ValueError(f'chunks={chunks} must be at least 1')
  settings = {'z_weight': z_weight, 'smoothing': smoothing}

  def score(out, batch, head):
    if out.logits.shape[:-1] != batch.targets.shape:
      raise config.ConfigError(
        f'this model has outputs of shape {list(out.logits.shape)} where its '
        f'data have targets of shape {list(batch.targets.shape)}: set data to '
        'what the model is made for'
      )
    count = _count(out, head, chunks)
    if count == 1:
      return token_loss(out.logits, batch, **settings)
    assert head is not None
    return chunked_loss(head, out.hidden, batch, chunks=count, **settings)

  return score


def token_nats(
  out: types.Output,
  batch: types.Batch,
  head: Head | None,
  chunks: int | None = None,
) -> jax.Array:
  """Computes -log p of each target, whatever its weight: float32 [B, L].

  Args:
    out: of the model, for the batch.
    batch: its targets are scored.
    head: `hidden -> logits`; None if the model has no such layer.
    chunks: the same as in `make`.
  """
  count = _count(out, head, chunks)
  if count == 1:
    return cross_entropy(out.logits, batch.targets)
  assert head is not None
  params, rest = _parameters(head, out.hidden)

  def run(params, *arrays):
    def part(arrays):
      x_BlD, targets_Bl = arrays
      return cross_entropy(rest(params)(x_BlD), targets_Bl)

    nats_MBl = jax.lax.map(part, _split(count, arrays))
    return (), jnp.moveaxis(nats_MBl, 0, 2).reshape(arrays[1].shape)

  return _on_each_device(run, params, out.hidden, batch.targets)[1]


def _count(out: types.Output, head: Head | None, chunks: int | None) -> int:
  """Finds the number of chunks, see `make`.

  Raises:
    config.ConfigError: the model cannot be scored in parts.
  """
  if chunks is None:
    return 1 if head is None else _chunks(*out.logits.shape)
  if chunks > 1 and head is None:
    raise config.ConfigError(
      f'chunks={chunks}: this model has no output layer that could be '
      'applied to a part of a row: use chunks=1'
    )
  return chunks


def _chunks(B: int, L: int, V: int) -> int:
  """Chooses how many chunks score fastest: on a GPU or TPU one.

  On a CPU a step is 1.02 to 1.05 times as fast if the logits of a chunk fit its
  caches. Of 8, 16 and 32 MiB the best for vocabularies of 4,096 and 8,192.
  """
  if sharding.platform() != 'cpu':
    return 1
  rows, texts = _cut(B, L)
  B, L = B // sharding.parts(*rows), L // sharding.parts(*texts)
  # Each chunk reads and writes the gradient of the output layer, and products
  # of few rows are slow.
  most = min(_MOST, max(1, B * L // _ROWS))
  counts = [n for n in range(1, most + 1) if L % n == 0]
  small = [n for n in counts if n * _SCORES >= B * L * V]
  return small[0] if small else counts[-1]


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
    batch: the batch whose `targets` [B, L] are scored with `weights` [B, L].
    z_weight: adds `z_weight * log(Z)^2` to each token, which keeps the
      normalizer Z of the softmax near 1. Reference: PaLM, arXiv 2204.02311,
      section 5.
    smoothing: probability taken from the target and spread evenly over all V
      ids. Reference: Szegedy et al. 2015, arXiv 1512.00567, section 7.
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
  """Computes `token_loss(head(hidden_BLD), batch)`, a part of a row at a time.

  Only the logits of L / chunks positions exist at any time, and only their
  gradients. Gradients are computed in the forward pass, while the logits are
  there, so that no product is computed twice; `batch.weights` gets none.

  Args:
    head: `hidden -> logits`, a `jax.tree_util.Partial` with its parameters.
    hidden_BLD: the input of the output layer.
    batch, z_weight, smoothing: the same as in `token_loss`.
    chunks: how many parts; each device has its share of every part.

  Raises:
    config.ConfigError: the positions cannot be divided into so many chunks.

  Reference: Hsu et al. 2024, arXiv 2410.10989, section 3.2.
  """
  params, rest = _parameters(head, hidden_BLD)

  def total(params, x_BlD, targets_Bl, weights_Bl):
    logits_BlV = rest(params)(x_BlD)
    nats_Bl = cross_entropy(logits_BlV, targets_Bl, z_weight, smoothing)
    return jnp.sum(nats_Bl * weights_Bl)

  nats = _chunked(
    total, chunks, params, hidden_BLD, batch.targets, batch.weights
  )
  return types.Metric(nats, jnp.sum(batch.weights))


def _parameters(head, x_BLD):
  """Finds the parameters that a head uses.

  A model's head holds all parameters of the model. A gradient for each of them
  would take as much memory as the model does, in every chunk.

  Returns:
    The parameters that the head uses, and a function that makes the head with
    others in their place.
  """
  leaves, treedef = jax.tree.flatten(head)
  traced = jax.make_jaxpr(lambda *leaves: treedef.unflatten(leaves)(x_BLD))(
    *leaves
  ).jaxpr
  # An input of the traced program that no operation reads is not used.
  used = {id(x) for step in traced.eqns for x in step.invars}
  places = [i for i, x in enumerate(traced.invars) if id(x) in used]

  def rest(params):
    new = dict(zip(places, params, strict=True))
    return treedef.unflatten(new.get(i, x) for i, x in enumerate(leaves))

  return [leaves[i] for i in places], rest


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(total, chunks, params, hidden_BLD, targets_BL, weights_BL):
  """Adds up `total(params, hidden, targets, weights)` over chunks of rows."""

  def run(params, *arrays):
    parts = _split(chunks, arrays)
    return jnp.sum(jax.lax.map(lambda x: total(params, *x), parts)), ()

  return _on_each_device(run, params, hidden_BLD, targets_BL, weights_BL)[0]


def _chunked_forward(total, chunks, params, *arrays):
  def run(params, *arrays):
    def step(sums, part):
      value, (dparams, dx_BlD) = jax.value_and_grad(total, argnums=(0, 1))(
        params, *part
      )
      return jax.tree.map(jnp.add, sums, (value, dparams)), dx_BlD

    # The loss and the gradients of parameters are sums over chunks; the
    # gradient of the hidden vectors is put together from the chunks' parts.
    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    sums, dx_MBlD = jax.lax.scan(step, zeros, _split(chunks, arrays))
    # Undoes `_split`: chunks become the fastest part of the positions again.
    return sums, jnp.moveaxis(dx_MBlD, 0, 2).reshape(arrays[0].shape)

  (value, dparams), dhidden_BLD = _on_each_device(run, params, *arrays)
  return value, (dparams, dhidden_BLD)


def _chunked_backward(total, chunks, residuals, cotangent):
  del total, chunks
  # The loss is one number, so its gradients only have to be scaled by what the
  # step above makes of it (a mean's weight, a loss scale).
  scaled = jax.tree.map(lambda x: (x * cotangent).astype(x.dtype), residuals)
  return *scaled, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _split(chunks, arrays):
  """Deals the positions of rows to chunks: [B, L, ...] to [M, B, l, ...].

  Chunk m takes positions m, m + M, m + 2 M and so on. Padding stands at the end
  of rows, and so is spread over all chunks.
  """
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


def _cut(B, L):
  """Finds the mesh axes that cut rows, and those that cut their positions."""
  rows = sharding.free(*sharding.BATCH)
  texts = sharding.free('sequence')
  if B % sharding.parts(*rows) or L % sharding.parts(*texts):
    return (), ()  # every device computes all rows of a batch too small to cut
  return rows, texts


def _on_each_device(fn, params, *arrays):
  """Calls `fn(params, *arrays) -> sums, rows` on the rows of each device.

  Parameters are gathered once, and sums are added up over devices once. Without
  `shard_map` the compiler would do both again for each chunk.
  """
  rows, texts = _cut(*arrays[0].shape[:2])
  axes = rows + texts
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
    # The check would have autodiff add up the gradients of parameters; here
    # the psum above does it, once after all chunks.
    check_vma=False,
  )(params, *arrays)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def cross_entropy(
  logits_BLV: jax.Array,
  targets_BL: jax.Array,
  z_weight: float = 0.0,
  smoothing: float = 0.0,
) -> jax.Array:
  """Computes the loss of each position, in nats: float32 [B, L].

  The gradient is written by hand: softmax minus target, in one pass over the
  logits. Autodiff would scatter into an array of zeros as large as the logits.

  Args:
    logits_BLV: scores of the vocabulary, in any float type.
    targets_BL: the right ids.
    z_weight, smoothing: the same as in `token_loss`.
  """
  return _forward(logits_BLV, targets_BL, z_weight, smoothing)[0]


def _forward(logits_BLV, targets_BL, z_weight, smoothing):
  # Always float32: a sum over a vocabulary in bfloat16 keeps two digits.
  wide_BLV = logits_BLV.astype(jnp.float32)
  log_z_BL = jax.lax.platform_dependent(
    wide_BLV, cuda=_log_sum_exp, default=partial(jax.nn.logsumexp, axis=-1)
  )
  # One gather of B * L scores; a product with one-hot targets would read an
  # array as large as the logits.
  score_BL = jnp.take_along_axis(wide_BLV, targets_BL[..., None], -1)[..., 0]
  nats_BL = log_z_BL - (1 - smoothing) * score_BL
  # Smoothing mixes the one-hot target with a uniform one, whose cross-entropy
  # is log Z minus the mean logit.
  if smoothing:
    nats_BL -= smoothing * jnp.mean(wide_BLV, axis=-1)
  if z_weight:
    nats_BL += z_weight * jnp.square(log_z_BL)
  return nats_BL, (logits_BLV, targets_BL, log_z_BL)


def _log_sum_exp(x_BLV):
  """Computes log(sum(exp(x))) over the vocabulary in one pass: [B, L].

  The usual way reads the logits twice, for the maximum and then for the sum. On
  a GPU reading them is most of the loss's cost.

  Reference: Milakov and Gimelshein 2018, arXiv 1805.02867, section 3.
  """

  def join(one, other):
    # Each side is (highest, sum of exp(x - highest)) of some of the logits.
    (high, many), (low, few) = one, other
    # The sum with the lower maximum shrinks, the other has a factor of 1: so
    # one exponential is enough, and two would make this slower than two passes.
    small = jnp.exp(-jnp.abs(high - low))
    total = jnp.where(high > low, many + few * small, many * small + few)
    return jnp.maximum(high, low), total

  # Finite, since -inf minus -inf would be nan.
  start = jnp.finfo(jnp.float32).min, jnp.zeros(())
  highest_BL, sum_BL = jax.lax.reduce(
    (x_BLV, jnp.ones_like(x_BLV)), start, join, (2,)
  )
  return highest_BL + jnp.log(sum_BL)


def _backward(z_weight, smoothing, residuals, cotangent_BL):
  logits_BLV, targets_BL, log_z_BL = residuals
  wide_BLV = logits_BLV.astype(jnp.float32)
  # The softmax, which is the gradient of log Z.
  grad_BLV = jnp.exp(wide_BLV - log_z_BL[..., None])
  if z_weight:
    # d (z log(Z)^2) = 2 z log(Z) d log(Z).
    grad_BLV *= (1 + 2 * z_weight * log_z_BL)[..., None]
  hit_BLV = _one_hot(targets_BL, logits_BLV)
  grad_BLV -= jnp.where(hit_BLV, 1 - smoothing, 0)
  if smoothing:
    grad_BLV -= smoothing / logits_BLV.shape[-1]
  return (grad_BLV * cotangent_BL[..., None]).astype(logits_BLV.dtype), None


cross_entropy.defvjp(_forward, _backward)


def _one_hot(targets_BL, logits_BLV):
  # A comparison with an iota fuses into the loop over the logits; a scatter, or
  # jax.nn.one_hot in float32, would be written to memory first.
  ids_11V = jax.lax.broadcasted_iota(jnp.int32, (1, 1, logits_BLV.shape[-1]), 2)
  return ids_11V == targets_BL[..., None]
