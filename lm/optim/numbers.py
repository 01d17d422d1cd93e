"""The numbers of an optimizer, as arguments of its computation.

A rate, a beta or a number of steps that Python writes into a computation is a
constant of the compiled program: another value needs another program. `take`
traces an optimizer and lists its numbers, and an `Optimizer` is the same one
with numbers that come from outside. This works on the equations of the update,
not on the settings of a function, so any optimizer can be given, and what it
checks or computes in Python is as before.

Equations of one line of code, which Python repeats for every parameter, have
their numbers in common where these are equal: a program of hundreds of separate
arguments takes three times as long to compile.

What is no number of the equations stays a constant: 0, 1 and -1, which switch
a stage off or are part of a formula, exponents of arrays, for which compilers
have short forms, arrays, and what stands inside of loops and branches.
"""

from collections.abc import Iterator
import dataclasses
from functools import partial
import hashlib
import math
import os
from typing import Any, NamedTuple

import jax
from jax.extend import core
import numpy as np
import optax

from lm import types

_JAX = os.path.dirname(jax.__file__)
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
  found = dict(_literals(closed.jaxpr)).values()
  numbers = Numbers(
    np.asarray([x for x in found if x.dtype != np.int32], np.float32),
    np.asarray([x for x in found if x.dtype == np.int32], np.int32),
  )

  def rest(numbers: Numbers, *arguments: Any) -> Any:
    given = _given(closed.jaxpr, numbers)
    leaves = jax.tree.leaves(arguments)
    new = _evaluate(closed.jaxpr, closed.consts, leaves, given)
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
    arguments = updates, state, params
    closed, shapes = jax.make_jaxpr(self.tx.update, return_shape=True)(
      *arguments
    )
    given = _given(closed.jaxpr, self.numbers)
    leaves = _evaluate(
      closed.jaxpr, closed.consts, jax.tree.leaves(arguments), given
    )
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _given(jaxpr: Any, numbers: Numbers) -> Iterator[Any]:
  """Yields a number for each literal that is one, as the literal's type."""
  floats, integers = iter(numbers.floats), iter(numbers.integers)
  known: dict[Any, Any] = {}
  for key, literal in _literals(jaxpr):
    if key not in known:
      source = integers if literal.dtype == np.int32 else floats
      known[key] = next(source).astype(literal.dtype)
    yield known[key]
  assert not [*floats, *integers], 'not the numbers of `take`'


def _evaluate(
  jaxpr: Any,
  constants: Any,
  arguments: Any,
  given: Iterator[Any],
) -> list[Any]:
  """Evaluates equations with given numbers; inner calls are inlined."""
  known = dict(zip(jaxpr.constvars, constants, strict=True))
  known |= dict(zip(jaxpr.invars, arguments, strict=True))

  def read(equation: Any) -> Iterator[Any]:
    for place, atom in enumerate(equation.invars):
      if not isinstance(atom, core.Literal):
        yield known[atom]
      elif _is_number(equation, place):
        yield next(given)
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


def _literals(
  jaxpr: Any, outer: tuple[Any, ...] = ()
) -> Iterator[tuple[Any, np.ndarray]]:
  """Yields numbers in the order in which `_evaluate` takes them, with keys.

  Equal keys stand for the same number in equations of the same code.

  Args:
    jaxpr: the equations.
    outer: the place of the call that they are the inside of.
  """
  for n, equation in enumerate(jaxpr.eqns):
    # Calls are kept from one trace to the next, with lines of the first.
    here = (*outer, n) if outer else _lines(equation)
    for place, atom in enumerate(equation.invars):
      if isinstance(atom, core.Literal) and _is_number(equation, place):
        value = np.asarray(atom.val, _dtype(atom))
        kind = equation.primitive.name, place, str(value.dtype)
        yield (here, kind, float(value)), value
    if equation.primitive.name in _CALLS:
      yield from _literals(equation.params['jaxpr'].jaxpr, here)


def _lines(equation: Any) -> tuple[Any, ...]:
  """Lists the lines of code that made an equation, without those of jax."""
  traceback = equation.source_info.traceback
  frames = traceback.frames if traceback else ()
  return (
    '',
    *(
      (x.file_name, x.line_num)
      for x in frames
      if not x.file_name.startswith(_JAX)
    ),
  )


def _dtype(literal: Any) -> np.dtype:
  return literal.aval.dtype


def _is_number(equation: Any, place: int) -> bool:
  """Tells whether the literal at a place of an equation is a number."""
  literal, name = equation.invars[place], equation.primitive.name
  dtype = str(_dtype(literal))
  if literal.aval.shape or dtype not in (*_FLOATS, 'int32'):
    return False
  size = abs(float(literal.val))
  if size in _CONSTANTS or not math.isfinite(size):
    return False
  if name == 'pow' and place == 1 and equation.invars[0].aval.shape:
    return False
  return dtype != 'int32' or name in _ARITHMETIC
