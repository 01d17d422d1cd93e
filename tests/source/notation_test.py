"""Array names say their dimensions, and einsum letters agree with them.

A failure means that a name such as `q_BLNH` and the letters of the einsum that
reads or makes the array disagree: one of the two misleads the reader.
"""

import ast
from pathlib import Path
import re

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = re.compile(r'^[A-Za-z0-9., ]*->[A-Za-z0-9 ]*$')
SUFFIX = re.compile(r'_([A-Za-z0-9]*[A-Z][A-Za-z0-9]*)$')


def suffix(node: ast.AST) -> str | None:
  """Returns the dimensions in a name; None has none.

  A cast or a power has the dimensions of what it is taken of.
  """
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
    return suffix(node.left)
  if (
    isinstance(node, ast.Call)
    and isinstance(node.func, ast.Attribute)
    and node.func.attr == 'astype'
  ):
    return suffix(node.func.value)
  if not isinstance(node, ast.Name):
    return None
  match = SUFFIX.search(node.id)
  return match and match[1]


def einsums(tree: ast.AST):
  """Yields (spec, arguments, target) of every product written with letters.

  These are `jnp.einsum`, `linear.contract`, `linear.multiply` and whatever else
  takes a spec first.
  """
  for node in ast.walk(tree):
    target = None
    call = node
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
      call, target = node.value, node.targets[0]
    elif isinstance(node, ast.AugAssign):
      call, target = node.value, node.target
    elif not isinstance(node, ast.Call):
      continue
    if not isinstance(call, ast.Call) or not call.args:
      continue
    first = call.args[0]
    if (
      isinstance(first, ast.Constant)
      and isinstance(first.value, str)
      and SPEC.match(first.value)
    ):
      yield first.value, call.args[1:], target


def disagreements(source: str) -> list[str]:
  """Lists the names whose dimensions are not those of their einsum."""
  found = []
  for spec, arguments, target in einsums(ast.parse(source)):
    inputs, _, output = spec.replace(' ', '').partition('->')
    letters = inputs.split(',')
    pairs = [*zip(letters, arguments, strict=False)]
    if target is not None:
      pairs.append((output, target))
    for wanted, node in pairs:
      have = suffix(node)
      if have is not None and have != wanted:
        found.append(f'line {node.lineno}: {ast.unparse(node)} in {spec!r}')
  return sorted(set(found))


@pytest.mark.parametrize(
  'file',
  sorted((ROOT / 'lm').rglob('*.py')),
  ids=lambda x: str(x.relative_to(ROOT)),
)
def test_names_have_the_letters_of_their_einsum(file):
  assert disagreements(file.read_text(encoding='utf-8')) == []


def test_a_disagreement_is_found():
  good = "y_BF = jnp.einsum('BD,DF->BF', x_BD, w_DF)"
  assert disagreements(good) == []
  assert len(disagreements(good.replace('x_BD', 'x_BL'))) == 1
  assert len(disagreements(good.replace('y_BF', 'y_BD'))) == 1
  assert len(disagreements(good.replace('y_BF =', 'y_BD +='))) == 1
  cast = good.replace('x_BD', 'x_BD.astype(dtype)')
  assert disagreements(cast) == []
  assert len(disagreements(cast.replace('x_BD', 'x_BL'))) == 1
