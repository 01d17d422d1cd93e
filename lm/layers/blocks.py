"""Kinds of block: how parts are joined to the residual stream."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.layers import checks, parts

ORDERS = ('pre', 'post', 'both')


def make(
  *,
  shared: parts.Shared,
  mixer: Mapping[str, Any],
  mlp: Mapping[str, Any],
  norm: Mapping[str, Any],
  order: str = 'pre',
  cross: Mapping[str, Any] | None = None,
) -> parts.Kind:
  """Makes a kind of block: a mixer and an mlp, each added to the stream.

  Args:
    shared: what the model's parts have in common.
    mixer: spec of a `parts.Mixer`.
    mlp: spec of a `parts.Mlp`.
    norm: spec of a norm.
    order: 'pre' normalizes what a part reads (Xiong et al. 2020, arXiv
      2002.04745); 'post' normalizes the sum of the stream and the part's output
      (Vaswani et al. 2017, arXiv 1706.03762, section 3.1); 'both' normalizes
      what a part reads and its output (Gemma 2, arXiv 2408.00118, section 2).
    cross: spec of a mixer between the two, such as `attention.cross`, which
      reads the encoder's text; None has none.

  Raises:
    ValueError: for an unknown order.
  """
  checks.check_choices(order=(order, ORDERS))
  specs = [mixer] if cross is None else [mixer, cross]
  mixers = tuple(config.build(spec, shared=shared) for spec in specs)
  thinks = config.build(mlp, shared=shared)
  build = partial(
    Block,
    mixers=mixers,
    mlp=thinks,
    norm=config.build(norm),
    order=order,
    dropout=shared.dropout,
    share=1 / shared.growth[1],
  )
  return _kind(build, mixers, (thinks,))


def single(*, shared: parts.Shared, mixer: Mapping[str, Any]) -> parts.Kind:
  """Makes a block that is a mixer alone, which replaces the stream.

  Args:
    shared: what the model's parts have in common.
    mixer: spec of a `parts.Mixer`.
  """
  if shared.growth[1] != 1:
    raise ValueError(
      'init.base_depth: depth transfers along a residual stream, and this block'
      ' replaces it: set base_depth=None'
    )
  alone = config.build(mixer, shared=shared)
  return _kind(partial(Single, mixer=alone), (alone,), ())


def _kind(build, mixers, mlps) -> parts.Kind:
  """Joins what the parts of a block say of themselves."""
  members = (*mixers, *mlps)

  def see(text, initializing, values):
    return tuple(
      mixer.see(text, initializing)
      if mixer.common is None
      else mixer.see(text, initializing, values[mixer.common.name])
      for mixer in mixers
    )

  def start(params, text, room):
    return {
      mixer.name: mixer.start(params[mixer.name], text, room)
      for mixer in mixers
    }

  return parts.Kind(
    build=build,
    see=see,
    start=start,
    rows=tuple(
      row for part in members for row in parts.below(part.name, part.rows)
    ),
    flops=lambda length: sum(part.flops(length) for part in members),
    commons=tuple(x.common for x in mixers if x.common is not None),
  )


class Block(nn.Module):
  """Adds to the stream what each mixer and the mlp make of it.

  Attributes:
    mixers: run one after another.
    mlp: runs last.
    norm: builds a norm, given `name`.
    order: see `make`.
    dropout: rate on each branch; on when the module has a 'dropout' rng.
    share: multiplies what is added to the stream, see `transfer.mup`.
  """

  mixers: tuple[parts.Mixer, ...]
  mlp: parts.Mlp
  norm: Callable[..., nn.Module]
  order: str
  dropout: float
  share: float = 1.0

  @nn.compact
  def __call__(self, x_BLD, seen, text, cache):
    """Returns [B, L, D], the new cache and the mlp's metrics."""
    new = {}
    for mixer, view in zip(self.mixers, seen, strict=True):
      h_BLD, new[mixer.name] = mixer.build(name=mixer.name)(
        self._before(mixer.name, x_BLD),
        view,
        None if cache is None else cache[mixer.name],
      )
      x_BLD = self._after(mixer.name, x_BLD, h_BLD)
    mlp = self.mlp.build(name=self.mlp.name)
    h_BLD, metrics = mlp(self._before(self.mlp.name, x_BLD), text)
    x_BLD = self._after(self.mlp.name, x_BLD, h_BLD)
    return x_BLD, None if cache is None else new, metrics

  def _before(self, name, x_BLD):
    if self.order == 'post':
      return x_BLD
    return self.norm(name=f'{name}_norm')(x_BLD)

  def _after(self, name, x_BLD, h_BLD):
    if self.order == 'both':
      h_BLD = self.norm(name=f'{name}_after_norm')(h_BLD)
    if self.share != 1:
      h_BLD *= self.share
    x_BLD += dropout(self, self.dropout, h_BLD)
    if self.order != 'post':
      return x_BLD
    return self.norm(name=f'{name}_norm')(x_BLD)


class Single(nn.Module):
  """Replaces the stream by what a mixer makes of it."""

  mixer: parts.Mixer

  @nn.compact
  def __call__(self, x_BLD, seen, text, cache):
    """Returns [B, L, D], the new cache and no metrics."""
    del text
    name = self.mixer.name
    old = None if cache is None else cache[name]
    x_BLD, new = self.mixer.build(name=name)(x_BLD, seen[0], old)
    return x_BLD, None if cache is None else {name: new}, {}


def dropout(
  module: nn.Module, rate: float, x: jax.Array, shared: Sequence[int] = ()
) -> jax.Array:
  """Zeroes a share of the entries when `module` was given a dropout rng.

  Args:
    module: whose rng is used.
    rate: the share.
    x: any array.
    shared: dimensions along which all entries share their fate.

  Reference: Srivastava et al. 2014, JMLR 15.
  """
  if not rate or not module.has_rng('dropout'):
    return x
  shape = [1 if i in shared else size for i, size in enumerate(x.shape)]
  keep = jax.random.bernoulli(module.make_rng('dropout'), 1 - rate, shape)
  return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
