"""How much arithmetic a token costs, and what share of a chip that is."""

from collections.abc import Callable
import math
import re
from typing import Any

import jax
from jax.interpreters import partial_eval

from lm import tree, types
from lm.planning import hardware


def multiplied(params: types.Params, top_k: int | None = None) -> int:
  """Counts N, the parameters that take part in every token's arithmetic.

  That is all of them except lookups: learned positions, embeddings of values,
  and the embedding table when there is a separate output matrix
  (`head/kernel`). A tied table is counted once, because it is multiplied once,
  as the output. Norm scales and biases stay in, well under 1 %.

  Args:
    params: a decoder's parameters, arrays or shapes.
    top_k: experts that a token reads, where each reads only some; None counts
      all of them.
  """
  lookup = re.compile(r'(^|/)(embed/positions|value_embed_\w+/table)$')
  if any(
    re.search(r'(^|/)head/kernel$', path) for path, _ in tree.paths(params)
  ):
    lookup = re.compile(
      r'(^|/)(embed/(positions|table)|value_embed_\w+/table)$'
    )

  def read(path: str, leaf: Any) -> int:
    if top_k is None or not re.search(r'(^|/)experts/', path):
      return leaf.size
    return leaf.size // leaf.shape[-3] * top_k

  return sum(
    read(path, leaf)
    for path, leaf in tree.paths(params)
    if not lookup.search(path)
  )


def forward_flops_per_token(
  parameters: int, depth: int, length: int, width: int
) -> int:
  """Counts a forward pass: 2N + 4 * depth * length * width.

  A multiply and an add for each parameter, and for each position attended to
  in scores and in the weighted sum. Causal attention is counted in full, as is
  the custom, so kernels that skip the masked half report more than they do.

  Args:
    parameters: N, from `multiplied`.
    depth: attention layers.
    length: positions in the attention window.
    width: query heads times head width, in most models the model's width.

  Reference: Chowdhery et al. 2022, arXiv 2204.02311, appendix B.
  """
  return 2 * parameters + 4 * depth * length * width


def train_flops_per_token(
  parameters: int, depth: int, length: int, width: int
) -> int:
  """Counts forward and backward: 6N + 12 * depth * length * width.

  Recomputation under remat is not counted. Arguments as for
  `forward_flops_per_token`.
  """
  return 3 * forward_flops_per_token(parameters, depth, length, width)


def peak(device_kind: str) -> float:
  """Looks up the peak dense bf16 FLOP/s of one jax device; see `chips.find`."""
  return hardware.find(device_kind).flops


def mfu(tokens_per_second: float, flops_per_token: float, peak: float) -> float:
  """Computes model FLOPs utilization, the part of `peak` that is used.

  Args:
    tokens_per_second: of all devices together.
    flops_per_token: from `train_flops_per_token`.
    peak: FLOP/s of all devices together: their number times `peak(kind)`.
  """
  return tokens_per_second * flops_per_token / peak


def products(fn: Callable[..., Any], *args: Any) -> int:
  """Counts the FLOPs of a function's products, on all devices together.

  A multiply and an add for each term of a sum; what is not a product counts as
  nothing, and so does what a kernel does, and what no result needs. Loops count
  as often as they run, what is computed again in a backward pass counts again,
  and masked parts of dense attention count too.

  Args:
    fn: traced, not run; what has a `trace` of its own, as functions of
      `jax.jit` do, by that: inside another it may have no compiler options.
    *args: arrays or shapes.
  """
  traced: Any = fn if hasattr(fn, 'trace') else jax.jit(fn)
  jaxpr = traced.trace(*args).jaxpr.jaxpr
  used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _products(used)


def _products(jaxpr: Any) -> int:
  total = 0
  for equation in jaxpr.eqns:
    name, settings = equation.primitive.name, equation.params
    inner = [
      getattr(value, 'jaxpr', value)
      for key, value in settings.items()
      if key in ('jaxpr', 'call', 'call_jaxpr', 'body_jaxpr', 'fun_jaxpr')
    ]
    if name == 'dot_general':
      (summed, _), _ = settings['dimension_numbers']
      sizes = equation.invars[0].aval.shape
      terms = math.prod(sizes[i] for i in summed)
      total += 2 * terms * equation.outvars[0].aval.size
    elif name == 'ragged_dot_general':
      # Each row meets the matrix of its group alone, or is in one sum.
      each = equation.outvars[0].aval.shape[-1]
      total += 2 * equation.invars[0].aval.size * each
    elif name == 'cond':
      total += max(_products(b.jaxpr) for b in settings['branches'])
    elif name == 'scan':
      total += settings['length'] * sum(map(_products, inner))
    elif name == 'shard_map':
      total += settings['mesh'].size * sum(map(_products, inner))
    elif name != 'pallas_call':
      total += sum(map(_products, inner))
  return total
