"""Shows what attentions look at, without a line in the model that computes it.

A hook around each attention computes its weights once more from what the
attention was given. So training pays nothing for it.
"""

from collections.abc import Callable
import threading
from typing import Any

from flax import linen as nn
import jax
from jax.experimental import io_callback
import jax.numpy as jnp
import numpy as np

from lm.layers import attention_module, dot_product, linear
from lm.layers import positions as positions_lib

_NORMS = ('q_norm', 'k_norm')


def observe(run: Callable[[], Any]) -> list[np.ndarray]:
  """Calls a function and collects the weights of all attentions in it.

  Args:
    run: applies a model to a batch, without a cache and not inside `jax.jit`.

  Returns:
    float32 [B, N, L, S] of each attention, in the order in which the model
    calls them; [] if there is none.
  """
  found: list[np.ndarray] = []
  normed: list[dict[str, jax.Array]] = []  # of attentions that are being called
  lock = threading.Lock()

  def store(weights_BNLS):
    with lock:
      found.append(np.asarray(weights_BNLS))

  def hook(call, args, kwargs, context):
    module = context.module
    if context.method_name != '__call__':
      return call(*args, **kwargs)
    if not isinstance(module, attention_module.Attention):
      out = call(*args, **kwargs)
      if normed and module.name in _NORMS:
        normed[-1][module.name] = out
      return out
    normed.append({})
    out = call(*args, **kwargs)
    weights_BNLS = _weights(module, normed.pop(), *args, **kwargs)
    # Layers are scanned: only a call from inside the loop sees each of them.
    io_callback(store, None, weights_BNLS, ordered=True)
    return out

  with nn.intercept_methods(hook):
    jax.block_until_ready(run())
  jax.effects_barrier()
  return found


def _weights(module, normed, x_BLD, seen, cache) -> jax.Array:
  """Computes the weights of an attention: float32 [B, N, L, S]."""
  assert cache is None
  params = module.variables['params']

  def project(name, y_BSD):
    y_BSNH = linear.contract(
      'BSD,DNH->BSNH', y_BSD, params[name], module.compute_dtype, module.dtype
    )
    if module.bias:
      y_BSNH += params[f'{name}_bias'].astype(module.dtype)[None, None]
    return y_BSNH

  read_BSD = seen.memory_BSD if module.cross else x_BLD
  q_BLNH = normed.get('q_norm', project('q', x_BLD))
  k_BSKH = normed.get('k_norm', project('k', read_BSD))
  if seen.rotation is not None:
    q_BLNH = positions_lib.rope(q_BLNH, seen.rotation)
    k_BSKH = positions_lib.rope(k_BSKH, seen.rotation)
  mask_B1LS = seen.mask_B1LS
  if seen.mask is not None:
    mask_B1LS = seen.mask.materialize()
  k_BKSH = jnp.einsum('BSKH->BKSH', k_BSKH)
  B, K, S, H = k_BKSH.shape
  # Mixing unit vectors gives the weights, a head's width of keys at a time.
  parts = []
  for start in range(0, S, H):
    units_SH = jnp.eye(S, H, k=-start, dtype=jnp.float32)
    units_BKSH = jnp.broadcast_to(units_SH, (B, K, S, H))
    parts.append(
      dot_product.attend(
        q_BLNH.astype(jnp.float32),
        k_BKSH.astype(jnp.float32),
        units_BKSH,
        mask_B1LS,
        terms=dot_product.Terms(seen.bias_BNLS, params.get('sink_bias')),
        scale=module.scale,
        softcap=module.softcap,
      )
    )
  weights_BLNS = jnp.concatenate(parts, axis=-1)[..., :S]
  return jnp.einsum('BLNS->BNLS', weights_BLNS)
