"""Which kernel mixes values, chosen by platform, and how each is called.

All equal `dot_product.attend` with the whole mask. Over a mesh each
device runs its kernel on the rows and heads that it holds.
"""

from concurrent import futures
import functools
from functools import partial
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from lm import config, errors, sharding
from lm.layers import blockwise, masks, ring

NAMES = ('auto', 'einsum', 'blockwise', 'splash', 'cudnn')
# Where blocks begin to be faster than one product, forward and backward: 1.3
# times at 1,024 on two CPU cores, but 0.8 times at 512.
_LONG = 1_024
# The same for products in runs, as `dot_product` has them on a CPU: 0.8 times
# at 1,024, 1.05 times at 2,048.
_LONG_ON_CPU = 2_048
# Of 256, 512 and 1,024 the fastest there from 2,048 positions on.
_BLOCK = 512
# cuDNN reads a mask of documents as an array: 128 MiB a row here.
_CUDNN_LONGEST = 8_192
_LANES = 128  # of a TPU's vector unit: what splash cuts texts into


def choose(
  asked: str,
  *,
  length: int,
  head_width: int,
  compute_dtype: str,
  softcap: float | None = None,
  prefix: bool = False,
  sink: bool = False,
  initializing: bool = False,
) -> str:
  """Chooses what mixes values of a text that sees itself, without a cache.

  Args:
    asked: one of `NAMES`. 'auto' is splash attention on TPU and cuDNN's on GPU
      where they can do what is asked for; otherwise 'einsum', whose scores are
      one array, for short texts, and 'blockwise' for long ones. Texts that the
      mesh cuts go round a ring, in blocks.
    length: L.
    head_width: H.
    compute_dtype, softcap: see `dot_product.attend`.
    prefix: whether the text has one.
    sink: whether heads have scores of their own.
    initializing: whether only shapes matter, wherever that is.

  Returns:
    'einsum', 'blockwise', 'ring', 'splash' or 'cudnn'.

  Raises:
    ValueError: what was asked for cannot do it.
  """
  if initializing:
    return 'einsum'
  cut = sharding.parts(ring.AXIS) > 1
  if asked == 'einsum':
    return asked
  if cut and asked in ('auto', 'blockwise'):
    return 'ring'
  if asked == 'blockwise':
    return asked
  where = sharding.platform()
  lacks = {
    'splash': [
      (where == 'tpu', f'is for TPU, and this is {where}'),
      (not cut, 'cuts no text: set mesh.sequence=1'),
      (not prefix, 'knows no prefix'),
      (not sink, 'knows no sink'),
      (length % _LANES == 0, f'needs a length that {_LANES} divides'),
    ],
    'cudnn': [
      (where == 'gpu', f'is for GPU, and this is {where}'),
      (_has_cudnn(), f"needs jax's CUDA plug-in: {errors.install('cuda')}"),
      (not cut, 'cuts no text: set mesh.sequence=1'),
      (compute_dtype == 'bfloat16', "needs compute_dtype='bfloat16'"),
      (softcap is None, 'knows no softcap'),
      (not sink, 'knows no sink'),
      (length % 2 == 0, 'needs an even length'),
      (
        head_width % 8 == 0 and head_width <= 128,
        'needs a head_width that 8 divides, up to 128',
      ),
    ],
  }
  if asked == 'auto':
    lacks['cudnn'].append((length <= _CUDNN_LONGEST, 'is for short texts'))
    for name, needs in lacks.items():
      if all(met for met, _ in needs):
        return name
    long = _LONG_ON_CPU if where == 'cpu' else _LONG
    return 'blockwise' if length >= long else 'einsum'
  for met, why in lacks[asked]:
    if not met:
      raise ValueError(f"kernel={asked!r} {why}; or use 'auto'")
  return asked


def use(spec: Any, kernel: str) -> None:
  """Sets the kernel of every attention in the spec of a model, in place.

  Args:
    spec: filled.
    kernel: one of `NAMES`.
  """
  for key, value in spec.items():
    if config.is_tree(value):
      use(value, kernel)
    elif key == 'kernel':
      spec[key] = kernel


def _has_cudnn() -> bool:
  """Tells whether calls of cuDNN can be compiled here."""
  plug_ins = (f'jax_cuda{version}_plugin' for version in (12, 13))
  return any(importlib.util.find_spec(name) for name in plug_ins)


def attend(
  q_BKGLH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  mask: masks.AttentionMask,
  sink_KG: jax.Array | None = None,
  *,
  scale: float,
  softcap: float | None,
  compute_dtype: str,
) -> jax.Array:
  """Mixes values by the softmax of scaled dot products: [B, K, G, L, H].

  Args:
    q_BKGLH, k_BKSH, v_BKSH: queries, keys and values of one text.
    mask: with the kernel that `choose` found.
    sink_KG: scores without a value; None has none.
    scale, softcap, compute_dtype: see `dot_product.attend`.
  """
  settings = blockwise.Settings(softcap, compute_dtype, _BLOCK)
  kernel = {
    'blockwise': blockwise.attend,
    'ring': ring.attend,
    'splash': splash,
    'cudnn': partial(cudnn, scale=scale),
  }[mask.kernel]
  if mask.kernel != 'cudnn':  # which does it on its way
    q_BKGLH *= scale
  kernel = partial(kernel, settings=settings)
  sinks = () if sink_KG is None else (sink_KG,)
  mesh = jax.sharding.get_abstract_mesh()
  free = sharding.free(*mesh.axis_names)
  if mesh.size == 1 or not free:
    return kernel(q_BKGLH, k_BKSH, v_BKSH, mask, *sinks)
  return _split(kernel, set(free), q_BKGLH, k_BKSH, v_BKSH, mask, *sinks)


def _split(kernel, free, q_BKGLH, k_BKSH, v_BKSH, mask, *sinks):
  """Calls a kernel on each device of some mesh axes, with its part."""

  def over(axes, size):
    """Which of the axes cut a dimension: none if it does not divide."""
    axes = sharding.free(*axes)
    return axes if size % sharding.parts(*axes) == 0 else ()

  B, K, _, L, _ = q_BKGLH.shape
  rows, heads = over(sharding.BATCH, B), over(('tensor',), K)
  texts = sharding.free(ring.AXIS) if mask.kernel == 'ring' else ()
  missing = -L % sharding.parts(*texts)

  def fill(x, axis, value=0):
    width = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, width, constant_values=value) if missing else x

  q_BKGLH = fill(q_BKGLH, 3)
  k_BKSH, v_BKSH = fill(k_BKSH, 2), fill(v_BKSH, 2)
  tokens = jax.tree.map(lambda x: fill(x, 1), mask.tokens())
  # What fills up is a document of its own.
  tokens['segments'] = fill(mask.segments, 1, -1)
  mask = mask.replace(**tokens)
  queries = PartitionSpec(rows, heads, None, texts, None)
  keys = PartitionSpec(rows, heads, texts, None)
  of_heads = [PartitionSpec(heads) for _ in sinks]
  places = jax.tree.map(
    lambda x: PartitionSpec(rows, texts) if x.ndim else PartitionSpec(), mask
  )
  out_BKGLH = jax.shard_map(
    kernel,
    in_specs=(queries, keys, keys, places, *of_heads),
    out_specs=queries,
    axis_names=free,
    # Pallas does not say over which axes what it returns differs.
    check_vma=False,
  )(q_BKGLH, k_BKSH, v_BKSH, mask, *sinks)
  return out_BKGLH[:, :, :, :L]


def splash(
  q_BKGLH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  mask: masks.AttentionMask,
  settings: blockwise.Settings,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Mixes values as `blockwise.attend` does, on TPU, in `compute_dtype`.

  A window is counted in slots there: the same, since documents have no gaps.

  Args:
    interpret: runs it slowly on any device, to test it.
  """
  B, K, G, L, H = q_BKGLH.shape

  kernel, documents = _splash(
    K * G, L, mask.causal, mask.window, settings.softcap, interpret
  )
  out_BNLH = jax.vmap(kernel)(
    q_BKGLH.reshape(B, K * G, L, H).astype(settings.compute_dtype),
    k_BKSH.astype(settings.compute_dtype),
    v_BKSH.astype(settings.compute_dtype),
    documents(mask.segments, mask.segments),
  )
  return out_BNLH.reshape(q_BKGLH.shape)


@functools.cache
def _splash(heads, length, causal, window, softcap, interpret):
  """Makes the kernel, and its type of documents.

  Once for all layers: to go through the mask takes seconds when it is large.
  """
  # Imported where it is used: half a second that no one but a TPU needs.
  from jax.experimental.pallas.ops.tpu import splash_attention

  shape = length, length
  mask = splash_attention.FullMask(shape)
  if window is not None:
    right = 0 if causal else None
    mask = splash_attention.LocalMask(shape, (window - 1, right), 0)
  elif causal:
    mask = splash_attention.CausalMask(shape)
  block = max(b for b in range(_LANES, 513, _LANES) if length % b == 0)

  def make():
    kernel = splash_attention.make_splash_mha(
      splash_attention.MultiHeadMask([mask] * heads),
      block_sizes=splash_attention.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
      ),
      attn_logits_soft_cap=softcap,
      head_shards=1,
      q_seq_shards=1,
      interpret=interpret,
    )
    # On the host, so that it is of no device.
    return jax.tree.map(np.asarray, kernel)

  # In a thread, which no mesh nor trace of this one reaches: the mesh may be
  # of machines that are not there, and can hold no array.
  with futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(make).result(), splash_attention.SegmentIds


def cudnn(
  q_BKGLH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  mask: masks.AttentionMask,
  settings: blockwise.Settings,
  *,
  scale: float,
) -> jax.Array:
  """Mixes values as `blockwise.attend` does, on GPU, in `compute_dtype`."""
  B, K, G, L, H = q_BKGLH.shape
  q_BLKGH = jnp.einsum('BKGLH->BLKGH', q_BKGLH).astype(settings.compute_dtype)
  k_BSKH, v_BSKH = (
    jnp.einsum('BKSH->BSKH', x).astype(settings.compute_dtype)
    for x in (k_BKSH, v_BKSH)
  )
  mix = partial(
    jax.nn.dot_product_attention,
    scale=scale,
    # Said beside a mask too, so that blocks above the diagonal are left out.
    is_causal=mask.causal and mask.prefix is None,
    implementation='cudnn',
  )
  heads = q_BLKGH.reshape(B, L, K * G, H), k_BSKH, v_BSKH
  if mask.prefix is not None or mask.window is not None:
    out_BLNH = mix(*heads, mask=mask.materialize())
  else:
    # Where each row is one document no mask is read: 1.02 ms instead of 1.40,
    # forward and backward, for 32 rows of 1,024 and 12 heads on an H200.
    out_BLNH = jax.lax.cond(
      jnp.all(mask.segments == mask.segments[:, :1]),
      lambda heads, _: mix(*heads),
      # Its mask is made again for the gradient: to keep it, the branch without
      # one would write as many zeros. All but cuDNN's call is.
      jax.checkpoint(
        lambda heads, mask: mix(*heads, mask=mask.materialize()),
        policy=lambda op, *_, **__: op.name.startswith('dot_product_attention'),
      ),
      heads,
      mask,
    )
  return jnp.einsum('BLKGH->BKGLH', out_BLNH.reshape(B, L, K, G, H))
