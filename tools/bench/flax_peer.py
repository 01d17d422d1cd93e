"""A peer for comparison: the same decoder in plain Flax Linen and optax.

It is written like Flax's own language-model examples: stock layers, attention
by einsum under a causal mask, optax's cross-entropy and AdamW, a donated state.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tools.bench import protocol
from tools.bench import spec as specs

_INIT = nn.initializers.normal(0.02)


class _Block(nn.Module):
  spec: specs.Spec

  @nn.compact
  def __call__(self, x_BLD):
    s = self.spec
    L, H = x_BLD.shape[1], s.width // s.heads
    y_BLD = nn.LayerNorm(epsilon=1e-5)(x_BLD)
    q_BLNH, k_BLNH, v_BLNH = (
      nn.DenseGeneral((s.heads, H), kernel_init=_INIT, name=name)(y_BLD)
      for name in 'qkv'
    )
    scores_BNLS = jnp.einsum('BLNH,BSNH->BNLS', q_BLNH * H**-0.5, k_BLNH)
    causal_11LS = jnp.tril(jnp.ones((1, 1, L, L), bool))
    scores_BNLS = jnp.where(causal_11LS, scores_BNLS, -1e9)
    mixed_BLNH = jnp.einsum(
      'BNLS,BSNH->BLNH', jax.nn.softmax(scores_BNLS), v_BLNH
    )
    x_BLD += nn.DenseGeneral(
      s.width, axis=(-2, -1), kernel_init=_INIT, name='o'
    )(mixed_BLNH)
    y_BLD = nn.LayerNorm(epsilon=1e-5)(x_BLD)
    y_BLF = nn.gelu(nn.Dense(s.mlp, kernel_init=_INIT)(y_BLD))
    return x_BLD + nn.Dense(s.width, kernel_init=_INIT)(y_BLF)


class _Decoder(nn.Module):
  spec: specs.Spec

  @nn.compact
  def __call__(self, tokens_BL):
    s = self.spec
    embed = nn.Embed(s.vocab, s.width, embedding_init=_INIT)
    x_BLD = embed(tokens_BL)
    positions_LD = self.param('positions', _INIT, (s.length, s.width))
    x_BLD += positions_LD[None]
    for _ in range(s.depth):
      x_BLD = _Block(s)(x_BLD)
    return embed.attend(nn.LayerNorm(epsilon=1e-5)(x_BLD))


def training(spec: list[Any], precision: str) -> protocol.Workload:
  """Trains in fp32 on random tokens; arguments are those of `ours.training`."""
  assert precision == 'fp32', precision
  s = specs.Spec(*spec)
  model = _Decoder(s)
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(
      optax.warmup_cosine_decay_schedule(0, 1e-3, 100, 10_000),
      b2=0.95,
      weight_decay=0.1,
      mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
    ),
  )
  ids = np.random.default_rng(0).integers(
    0, s.vocab, (s.batch, s.length + 1), np.int32
  )
  params = jax.jit(model.init)(jax.random.key(0), ids[:1, :-1])
  state = params, jax.jit(tx.init)(params)

  def mean_loss(params, ids):
    logits_BLV = jnp.asarray(model.apply(params, ids[:, :-1]))
    return optax.softmax_cross_entropy_with_integer_labels(
      logits_BLV, ids[:, 1:]
    ).mean()

  def update(state, ids):
    params, opt_state = state
    loss, grads = jax.value_and_grad(mean_loss)(params, ids)
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss

  run = jax.jit(update, donate_argnums=0)

  def advance() -> Mapping[str, float]:
    nonlocal state
    state, loss = run(state, ids)
    jax.block_until_ready(state)
    return {'loss_nats': float(loss)}

  parameters = sum(x.size for x in jax.tree.leaves(params))
  return protocol.Workload(
    advance, s.batch * s.length, {'parameters': parameters}
  )


if __name__ == '__main__':
  protocol.serve({'training': training})
