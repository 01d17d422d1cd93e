"""The numbers of an optimizer, as arguments of its computation.

A rate, a beta or a number of steps that Python writes into a computation is a
constant of the compiled program: another value needs another program. `take`
traces an optimizer and lists its numbers, and an `Optimizer` is the same one
with numbers that come from outside. This works on the equations of the update,
not on the settings of a function, so any optimizer can be given, and what it
checks or computes in Python is as before.

What is no number of the equations stays a constant: 0, 1 and -1, which switch
a stage off or are part of a formula, exponents of arrays, for which compilers
have short forms, arrays, and what stands inside of loops and branches.
"""

from collections.abc import Iterator
import dataclasses
from functools import partial
import hashlib
import math
from typing import Any, NamedTuple

import jax
from jax.extend import core
import numpy as np
import optax

from lm import types

# They switch something off, or are part of a formula.
_CONSTANTS = (0.0, 1.0, float(np.iinfo(np.int32).max))
_CALLS = ('jit', 'pjit')  # whose equations count as those of the caller
_FLOATS = ('float32', 'bfloat16', 'float16')  # float32 holds all of them
# Elsewhere an integer may be a place in an array, which compilers must know.
_ARITHMETIC = (
  *('add', 'sub', 'mul', 'div', 'rem', 'max', 'min', 'select_n'),
  *('lt', 'le', 'gt', 'ge', 'eq', 'ne', 'convert_element_type', *_CALLS),
)


class Numbers(NamedTuple):
  """The numbers of an optimizer, in the order of its equations.

  Attributes:
    floats: float32 [N].
    integers: int32 [M].
  """

  floats: Any
  integers: Any


def take(
  tx: optax.GradientTransformation, params: types.Params, state: Any
) -> tuple[Numbers, str]:
  """Takes the numbers out of an optimizer.

  Args:
    tx: the optimizer.
    params: shapes of the parameters.
    state: shapes of the optimizer's state.

  Returns:
    Its numbers, and a hash of all the rest: optimizers with equal hashes
    compute the same with the same numbers.
  """
  closed = jax.make_jaxpr(tx.update)(params, state, params)
  found = list(_numbers(closed.jaxpr))
  numbers = Numbers(
    np.asarray([x for x in found if x.dtype != np.int32], np.float32),
    np.asarray([x for x in found if x.dtype == np.int32], np.int32),
  )

  def rest(numbers: Numbers, *arguments: Any) -> Any:
    new = _evaluate(
      closed.jaxpr, closed.consts, jax.tree.leaves(arguments), _Given(numbers)
    )
    return new, tx.init(arguments[0])

  lowered = jax.jit(rest).lower(numbers, params, state, params)
  return numbers, hashlib.sha256(lowered.as_text().encode()).hexdigest()


@partial(
  jax.tree_util.register_dataclass,
  data_fields=['numbers'],
  meta_fields=['tx'],
)
@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optimizer with numbers in the place of its own; a tree of these numbers.

  Attributes:
    tx: the optimizer whose equations it has.
    numbers: of an optimizer of the same hash, see `take`; also while traced.
  """

  tx: optax.GradientTransformation
  numbers: Numbers

  def init(self, params: types.Params) -> Any:
    """Makes the state, as the optimizer does."""
    return self.tx.init(params)

  def update(self, updates: Any, state: Any, params: Any = None) -> Any:
    """Updates with the numbers that are given."""
    arguments, given = (updates, state, params), _Given(self.numbers)
    closed, shapes = jax.make_jaxpr(self.tx.update, return_shape=True)(
      *arguments
    )
    leaves = _evaluate(
      closed.jaxpr, closed.consts, jax.tree.leaves(arguments), given
    )
    assert not [*given.floats, *given.integers], 'not the numbers of `take`'
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


class _Given:
  """Hands numbers out, in the order of the equations."""

  def __init__(self, numbers: Numbers):
    self.floats, self.integers = iter(numbers.floats), iter(numbers.integers)

  def next(self, dtype: np.dtype) -> Any:
    """Returns the next number, as the type of the literal that it replaces."""
    source = self.integers if dtype == np.int32 else self.floats
    return next(source).astype(dtype)


def _evaluate(
  jaxpr: core.Jaxpr,
  constants: Any,
  arguments: Any,
  given: _Given,
) -> list[Any]:
  """Evaluates equations with given numbers; inner calls are inlined."""
  known = dict(zip(jaxpr.constvars, constants, strict=True))
  known |= dict(zip(jaxpr.invars, arguments, strict=True))

  def read(equation: Any) -> Iterator[Any]:
    for place, atom in enumerate(equation.invars):
      if not isinstance(atom, core.Literal):
        yield known[atom]
      elif _is_number(equation, place):
        yield given.next(atom.aval.dtype)
      else:
        yield atom.val

  for equation in jaxpr.eqns:
    values = list(read(equation))
    with equation.ctx.manager:
      if equation.primitive.name in _CALLS:
        inner = equation.params['jaxpr']
        results = _evaluate(inner.jaxpr, inner.consts, values, given)
      else:
        settings = equation.primitive.get_bind_params(equation.params)
        results = equation.primitive.bind(*values, **settings)
        if not equation.primitive.multiple_results:
          results = [results]
    known |= dict(zip(equation.outvars, results, strict=True))
  return [
    x.val if isinstance(x, core.Literal) else known[x] for x in jaxpr.outvars
  ]


def _numbers(jaxpr: core.Jaxpr) -> Iterator[np.ndarray]:
  """Lists numbers in the order in which `_evaluate` asks for them."""
  for equation in jaxpr.eqns:
    for place, atom in enumerate(equation.invars):
      if isinstance(atom, core.Literal) and _is_number(equation, place):
        yield np.asarray(atom.val, atom.aval.dtype)
    if equation.primitive.name in _CALLS:
      yield from _numbers(equation.params['jaxpr'].jaxpr)


def _is_number(equation: Any, place: int) -> bool:
  """Tells whether the literal at a place of an equation is a number."""
  literal, name = equation.invars[place], equation.primitive.name
  dtype = str(literal.aval.dtype)
  if literal.aval.shape or dtype not in (*_FLOATS, 'int32'):
    return False
  size = abs(float(literal.val))
  if size in _CONSTANTS or not math.isfinite(size):
    return False
  if name == 'pow' and place == 1 and equation.invars[0].aval.shape:
    return False
  return dtype != 'int32' or name in _ARITHMETIC
