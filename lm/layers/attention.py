"""Multi-head attention with grouped keys and a cache."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm.layers import blockwise, kernels, linear, masks, positions


class View(NamedTuple):
  """What attention looks at, the same for many layers.

  Attributes:
    mask_B1LS: bool, True where a query may look; None where `mask` says it.
    rotation: of queries and keys; None has none.
    bias_BNLS: added to the scores, float32 [B or 1, N, L, S]; None has none.
    memory_BSD: the encoder's output, for cross-attention; None where a cache
      holds its keys and values.
    memory_mask_B1LS: bool, True where a query may look in the memory.
    mask: what a kernel reads that needs no whole mask; None where there is
      one.
    segments_BL: document of each query, 0 is padding: experts read none.
  """

  mask_B1LS: jax.Array | None = None
  rotation: positions.Rotation | None = None
  bias_BNLS: jax.Array | None = None
  memory_BSD: jax.Array | None = None
  memory_mask_B1LS: jax.Array | None = None
  mask: masks.AttentionMask | None = None
  segments_BL: jax.Array | None = None


def look(
  queries: masks.AttentionMask,
  keys: masks.AttentionMask | None = None,
  first: jax.Array | int = 0,
) -> View:
  """Makes a view of a text: with a mask, unless a kernel does without.

  Args:
    queries, keys, first: as of `AttentionMask.materialize`; a kernel has no other keys.
  """
  if queries.kernel == 'einsum':
    return View(queries.materialize(keys, first), segments_BL=queries.segments)
  assert keys is None, 'only a mask shows other keys than the queries'
  return View(mask=queries, segments_BL=queries.segments)


def choose(which: jax.Array, views: Sequence[View]) -> View:
  """Returns one of views of one text, by an index that is computed."""
  if len(views) == 1:
    return views[0]
  seen = [view.mask for view in views if view.mask is not None]
  view = jax.tree.map(
    lambda *xs: jax.lax.select_n(which, *xs),
    *(view._replace(mask=None) for view in views),
  )
  return view._replace(mask=masks.merge(seen, which)) if seen else view


def attend(
  q_BLNH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  mask_B1LS: jax.Array,
  *,
  bias_BNLS: jax.Array | None = None,
  scale: float | None = None,
  softcap: float | None = None,
  compute_dtype: str = 'float32',
) -> jax.Array:
  """Mixes values by the softmax of scaled dot products: [B, L, N, H].

  N/K neighbouring query heads share a key head.

  Args:
    bias_BNLS: added to the scores, [B or 1, N, L, S]; None has none.
    scale: of the dot products; None is 1 / sqrt(H).
    softcap: bounds the scores by `softcap * tanh(score / softcap)`; None is
      off. Reference: Gemma 2, arXiv 2408.00118, section 2.
    compute_dtype: dtype that matrix products read.

  Reference: Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1; grouped keys:
  Ainslie et al. 2023, arXiv 2305.13245.
  """
  K = k_BKSH.shape[1]
  out_BKGLH = _mix(
    _queries(q_BLNH, K) * _scale(q_BLNH, scale),
    k_BKSH,
    v_BKSH,
    mask_B1LS[:, :, None],
    _grouped(bias_BNLS, K),
    softcap,
    compute_dtype,
  )
  return _heads_last(out_BKGLH, q_BLNH)


def attend_unmasked(
  q_BLNH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  mask: masks.AttentionMask,
  *,
  scale: float | None = None,
  softcap: float | None = None,
  compute_dtype: str = 'float32',
) -> jax.Array:
  """Does what `attend` does, with no mask and no array of all scores."""
  out_BKGLH = kernels.attend(
    _queries(q_BLNH, k_BKSH.shape[1]),
    k_BKSH,
    v_BKSH,
    mask,
    scale=_scale(q_BLNH, scale),
    softcap=softcap,
    compute_dtype=compute_dtype,
  )
  return _heads_last(out_BKGLH, q_BLNH)


def attend_cache(
  q_BLNH: jax.Array,
  k_XHS: jax.Array,
  v_XSH: jax.Array,
  mask_B1LS: jax.Array,
  *,
  bias_BNLS: jax.Array | None = None,
  scale: float | None = None,
  softcap: float | None = None,
  compute_dtype: str = 'float32',
) -> jax.Array:
  """Does what `attend` does, with a cache's keys and values.

  Rows and key heads are one dimension X = B K, and keys are turned: so both
  products read the cache as it is. Otherwise XLA:CPU copies it several times
  for every token, to have an array of each product's shape.
  """
  B, L, N, _ = q_BLNH.shape
  X, H, S = k_XHS.shape
  K = X // B
  q_BKGLH = _queries(q_BLNH, K) * _scale(q_BLNH, scale)
  scores_XMS = linear.multiply(
    'XMH,XHS->XMS',
    q_BKGLH.reshape(X, -1, H).astype(compute_dtype),
    k_XHS.astype(compute_dtype),
    'float32',
  )
  weights_BKGLS = _weights(
    blockwise.capped(scores_XMS, softcap).reshape(B, K, N // K, L, S),
    mask_B1LS[:, :, None],
    _grouped(bias_BNLS, K),
  )
  out_XMH = linear.multiply(
    'XMS,XSH->XMH',
    weights_BKGLS.reshape(X, -1, S).astype(compute_dtype),
    v_XSH.astype(compute_dtype),
    'float32',
  )
  return _heads_last(out_XMH.reshape(B, K, N // K, L, H), q_BLNH)


def _scale(q_BLNH, scale):
  # Of q rather than of the scores: L * H numbers instead of L * S.
  return q_BLNH.shape[-1] ** -0.5 if scale is None else scale


def _queries(q_BLNH, K):
  B, L, N, H = q_BLNH.shape
  q_BLKGH = q_BLNH.reshape(B, L, K, N // K, H)
  # Heads before positions: what batched products want, and small next to S.
  return jnp.einsum('BLKGH->BKGLH', q_BLKGH)


def _grouped(bias_BNLS, K):
  if bias_BNLS is None:
    return None
  B, N, L, S = bias_BNLS.shape
  return bias_BNLS.reshape(B, K, N // K, L, S)


def _heads_last(out_BKGLH, q_BLNH):
  out_BLKGH = jnp.einsum('BKGLH->BLKGH', out_BKGLH)
  return out_BLKGH.reshape(q_BLNH.shape).astype(q_BLNH.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _mix(
  q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, bias_BKGLS, softcap, compute_dtype
) -> jax.Array:
  """Mixes values: float32 [B, K, G, L, H].

  The rule for gradients keeps one array of the size of the scores, in the
  compute_dtype' type, where autodiff keeps several in float32. Reference: Dao et al.
  2022, arXiv 2205.14135, appendix B.2.
  """
  return _forward(
    q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, bias_BKGLS, softcap, compute_dtype
  )[0]


def _scores(q_BKGLH, k_BKSH, softcap):
  # Scores and softmax in float32: exp of a bfloat16 score is off by percents.
  return blockwise.capped(
    linear.multiply('BKGLH,BKSH->BKGLS', q_BKGLH, k_BKSH, 'float32'), softcap
  )


def _weights(scores_BKGLS, mask_B11LS, bias_BKGLS):
  if bias_BKGLS is not None:
    scores_BKGLS += bias_BKGLS
  scores_BKGLS = jnp.where(mask_B11LS, scores_BKGLS, masks.MASKED)
  return jax.nn.softmax(scores_BKGLS, axis=-1)


def _forward(
  q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, bias_BKGLS, softcap, compute_dtype
):
  # Empty arrays carry the original dtypes, which jax types do not travel in.
  kinds = [jnp.zeros((0,), x.dtype) for x in (q_BKGLH, k_BKSH, v_BKSH)]
  shape = None if bias_BKGLS is None else jnp.zeros((len(bias_BKGLS), 0))
  q_BKGLH, k_BKSH, v_BKSH = (
    x.astype(compute_dtype) for x in (q_BKGLH, k_BKSH, v_BKSH)
  )
  scores_BKGLS = _scores(q_BKGLH, k_BKSH, softcap)
  weights_BKGLS = _weights(scores_BKGLS, mask_B11LS, bias_BKGLS)
  weights_BKGLS = weights_BKGLS.astype(compute_dtype)
  out_BKGLH = linear.multiply(
    'BKGLS,BKSH->BKGLH', weights_BKGLS, v_BKSH, 'float32'
  )
  kept = q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, weights_BKGLS, out_BKGLH
  return out_BKGLH, (kept, kinds, shape)


def _backward(softcap, compute_dtype, residuals, cotangent_BKGLH):
  kept, kinds, shape = residuals
  q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, weights_BKGLS, out_BKGLH = kept
  # How far a row's gain lies above its mean: sum(weights * gain) = out . d out.
  mean_BKGL1 = jnp.sum(cotangent_BKGLH * out_BKGLH, axis=-1, keepdims=True)
  cotangent_BKGLH = cotangent_BKGLH.astype(compute_dtype)
  dv_BKSH = linear.multiply(
    'BKGLS,BKGLH->BKSH', weights_BKGLS, cotangent_BKGLH, kinds[2].dtype
  )
  gain_BKGLS = linear.multiply(
    'BKGLH,BKSH->BKGLS', cotangent_BKGLH, v_BKSH, 'float32'
  )
  ds_BKGLS = weights_BKGLS.astype(jnp.float32) * (gain_BKGLS - mean_BKGL1)
  # Weights are 0 there but in a row that may look nowhere.
  ds_BKGLS = jnp.where(mask_B11LS, ds_BKGLS, 0)
  dbias_BKGLS = ds_BKGLS
  if shape is None:
    dbias_BKGLS = None
  elif len(shape) == 1:
    dbias_BKGLS = jnp.sum(ds_BKGLS, axis=0, keepdims=True)
  if softcap is not None:
    capped_BKGLS = _scores(q_BKGLH, k_BKSH, softcap)
    ds_BKGLS *= 1 - jnp.square(capped_BKGLS / softcap)
  ds_BKGLS = ds_BKGLS.astype(compute_dtype)
  dq_BKGLH = linear.multiply(
    'BKGLS,BKSH->BKGLH', ds_BKGLS, k_BKSH, kinds[0].dtype
  )
  dk_BKSH = linear.multiply(
    'BKGLS,BKGLH->BKSH', ds_BKGLS, q_BKGLH, kinds[1].dtype
  )
  return dq_BKGLH, dk_BKSH, dv_BKSH, None, dbias_BKGLS


_mix.defvjp(_forward, _backward)


class Attention(nn.Module):
  """Projections, positions, optional QK-norm and cache around `attend`.

  Attributes:
    heads: N.
    kv_heads: K, which divides N.
    head_width: H.
    bias: adds biases to the four projections.
    kernel_init, output_init: of q, k, v and of the output projection. With a
      `scale`, q starts smaller or larger, so that scores start as without: T5's
      initial values.
    dtype, compute_dtype: result and operand types of products.
    qk_norm: builds the norm of queries and keys per head before rotation, given
      `name`; None has none. Reference: Dehghani et al. 2023, arXiv 2302.05442,
      section 2.1.
    scale, softcap: see `attend`.
    cross: reads keys and values in the view's memory, not in the stream.
  """

  heads: int
  kv_heads: int
  head_width: int
  bias: bool
  kernel_init: nn.initializers.Initializer
  output_init: nn.initializers.Initializer
  dtype: str
  compute_dtype: str
  qk_norm: Callable[..., nn.Module] | None = None
  scale: float | None = None
  softcap: float | None = None
  cross: bool = False

  @nn.compact
  def __call__(self, x_BLD, view: View, cache):
    """Returns [B, L, D] and the cache with this call's keys and values.

    `cache` is None, or `k` [X, H, S] and `v` [X, S, H] of `attend_cache`, and
    `index`, the slot that the first of the L positions is written to. The
    memory's keys and values do not change, so a cross-attention's cache is what
    `memory_cache` makes.
    """
    D, N, K, H = x_BLD.shape[-1], self.heads, self.kv_heads, self.head_width
    rotation = None if self.cross else view.rotation

    def init(name, *args):
      gain = 1.0
      if name == 'q' and self.scale is not None:
        gain = H**-0.5 / self.scale
      return gain * self.kernel_init(*args)

    def project(name, x_BLD, heads):
      kernel_DNH = self.param(name, partial(init, name), (D, heads, H))
      bias_NH = None
      if self.bias:
        bias_NH = self.param(f'{name}_bias', nn.initializers.zeros, (heads, H))
      return _project(
        x_BLD, kernel_DNH, bias_NH, self.compute_dtype, self.dtype
      )

    q_BLNH = project('q', x_BLD, N)
    if self.qk_norm is not None:
      q_BLNH = self.qk_norm(name='q_norm')(q_BLNH)
    if rotation is not None:
      q_BLNH = positions.rope(q_BLNH, rotation)
    if not self.cross or cache is None:
      y_BSD = view.memory_BSD if self.cross else x_BLD
      k_BSKH, v_BSKH = project('k', y_BSD, K), project('v', y_BSD, K)
      if self.qk_norm is not None:
        k_BSKH = self.qk_norm(name='k_norm')(k_BSKH)
      if rotation is not None:
        k_BSKH = positions.rope(k_BSKH, rotation)
      k_BKSH, v_BKSH = (jnp.einsum('BSKH->BKSH', x) for x in (k_BSKH, v_BSKH))
    settings = {
      'scale': self.scale,
      'softcap': self.softcap,
      'compute_dtype': linear.floating(self.compute_dtype),
    }
    if view.mask is not None and not self.cross:
      assert cache is None and view.bias_BNLS is None
      mixed_BLNH = attend_unmasked(
        q_BLNH, k_BKSH, v_BKSH, view.mask, **settings
      )
    else:
      mask_B1LS = view.memory_mask_B1LS if self.cross else view.mask_B1LS
      assert mask_B1LS is not None, 'cross-attention needs a memory'
      bias_BNLS = None if self.cross else view.bias_BNLS
      if cache is None:
        mixed_BLNH = attend(
          q_BLNH, k_BKSH, v_BKSH, mask_B1LS, bias_BNLS=bias_BNLS, **settings
        )
      else:
        if not self.cross:
          cache = _write(cache, k_BKSH, v_BKSH)
        mixed_BLNH = attend_cache(
          q_BLNH,
          cache['k'],
          cache['v'],
          mask_B1LS,
          bias_BNLS=bias_BNLS,
          **settings,
        )
    kernel_NHD = self.param('o', self.output_init, (N, H, D))
    out_BLD = linear.contract(
      'BLNH,NHD->BLD', mixed_BLNH, kernel_NHD, self.compute_dtype, self.dtype
    )
    if self.bias:
      bias_D = self.param('o_bias', nn.initializers.zeros, (D,))
      out_BLD += bias_D.astype(self.dtype)[None, None]
    return out_BLD, cache


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
    compute_dtype, dtype: as of the module.
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


def _write(cache, k_BKLH, v_BKLH):
  B, K, L, H = k_BKLH.shape
  k_XHL = jnp.einsum('BKLH->BKHL', k_BKLH).reshape(B * K, H, L)
  v_XLH = v_BKLH.reshape(B * K, L, H)
  at = cache['index']
  return {
    **cache,
    'k': jax.lax.dynamic_update_slice(cache['k'], k_XHL, (0, 0, at)),
    'v': jax.lax.dynamic_update_slice(cache['v'], v_XLH, (0, at, 0)),
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
