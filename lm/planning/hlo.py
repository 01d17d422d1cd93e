"""Reads off a compiled program what it moves: collectives and bytes.

XLA's own analysis counts the body of a loop once; here each instruction counts
as often as it runs.
"""

from collections.abc import Iterator, Sequence
import math
import re
from typing import NamedTuple

import numpy as np

# Bits an element; a packed type that is not listed has 8.
_BITS = {
  'pred': 8,
  's4': 4,
  'u4': 4,
  's16': 16,
  'u16': 16,
  'bf16': 16,
  'f16': 16,
  's32': 32,
  'u32': 32,
  'f32': 32,
  's64': 64,
  'u64': 64,
  'f64': 64,
  'c64': 64,
  'c128': 128,
  'token': 0,
}
_KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
  'ragged-all-to-all',
)
# Instructions that move nothing, or whose parts are counted where they stand.
_FREE = {
  'after-all',
  'async-done',
  'async-update',
  'bitcast',
  'call',
  'conditional',
  'constant',
  'copy-done',
  'get-tuple-element',
  'iota',
  'optimization-barrier',
  'parameter',
  'partition-id',
  'replica-id',
  'tuple',
  'while',
  *(f'{kind}-done' for kind in _KINDS),
}


class Instruction(NamedTuple):
  """One line of a computation.

  Attributes:
    name, op: as in the text.
    bytes: of the result, all of a tuple.
    operands: names.
    rest: operands and attributes, as text.
    count: how often it runs.
  """

  name: str
  op: str
  bytes: int
  operands: tuple[str, ...]
  rest: str
  count: int = 1


class Collective(NamedTuple):
  """Collectives of one kind over the same mesh axes.

  Attributes:
    kind: 'all-gather', 'all-reduce', ...
    axes: mesh axes that its groups span; empty if they could not be read.
    parts: devices of a group.
    count: how many run.
    bytes: that one device sends over its links, in a ring, by all of them.
  """

  kind: str
  axes: tuple[str, ...]
  parts: int
  count: int
  bytes: int


def instructions(text: str) -> Iterator[Instruction]:
  """Yields what runs, fusions as one instruction, with how often it does."""
  computations, entry = _computations(text)
  counts = dict.fromkeys(computations, 0)

  def visit(name, times):
    counts[name] += times
    for line in computations[name]:
      attributes = dict(re.findall(r'(\w+)=%?([\w.-]+)', line.rest))
      if line.op == 'while':
        body, condition = attributes['body'], attributes['condition']
        trips = _trips(line.rest, computations[condition])
        visit(body, times * trips)
      elif line.op in ('call', 'async-start'):
        visit(attributes.get('to_apply') or attributes['calls'], times)
      elif line.op == 'conditional':
        for branch in _branches(line.rest):
          visit(branch, times)

  visit(entry, 1)
  for name, lines in computations.items():
    if counts[name]:
      for line in lines:
        yield line._replace(count=counts[name])


def collectives(text: str, mesh: dict[str, int]) -> list[Collective]:
  """Lists what devices tell each other in one run of a program.

  Args:
    text: of the optimized program.
    mesh: sizes of the mesh's axes, from the outermost.
  """
  found: dict[tuple, list[int]] = {}
  for line in instructions(text):
    kind = line.op.removesuffix('-start')
    if kind not in _KINDS:
      continue
    groups = _groups(line.rest, math.prod(mesh.values()))
    axes = _axes(groups, mesh)
    parts = groups.shape[1]
    if parts == 1:
      continue
    size = line.bytes
    if line.op.endswith('-start') and kind != 'all-reduce':
      size //= 2  # its result holds the operand too; nearly so for a gather
    total = found.setdefault((kind, axes, parts), [0, 0])
    total[0] += line.count
    total[1] += round(line.count * size * _sent(kind, parts))
  return [Collective(*key, *total) for key, total in sorted(found.items())]


def traffic(text: str) -> int:
  """Counts the bytes that a device reads and writes in its memory.

  Every instruction reads its operands and writes its result; products of
  matrices count too.
  """
  sizes: dict[str, int] = {}
  total = 0
  for line in instructions(text):
    sizes[line.name] = line.bytes
    if line.op in _FREE:
      continue
    if line.op in ('dynamic-slice', 'gather', 'slice'):
      total += 2 * line.count * line.bytes
      continue
    read = [sizes.get(name, 0) for name in line.operands]
    written = line.bytes
    # A slice of a large array written in place moves the slice alone.
    if 'dynamic-update-slice' in line.name or line.op == 'dynamic-update-slice':
      whole = max(read, default=0)
      written, read = max(written - whole, 0), [n for n in read if n < whole]
      written += max(read, default=0)
    elif 'dynamic-slice' in line.name:
      read = [min(n, line.bytes) for n in read]
    total += line.count * (written + sum(read))
  return total


def _sent(kind: str, parts: int) -> float:
  """Tells what a device sends in a ring, as a multiple of the result."""
  share = (parts - 1) / parts
  return {
    'all-gather': share,
    'all-reduce': 2 * share,
    'reduce-scatter': parts - 1,
    'all-to-all': share,
    'ragged-all-to-all': share,
    'collective-permute': 1,
  }[kind]


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
  found: dict[str, list[Instruction]] = {}
  entry, lines = '', []
  for line in text.splitlines():
    head = re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line)
    if head:
      lines = found.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif (instruction := _parse(line)) is not None:
      lines.append(instruction)
  assert entry, 'no program: the text has no ENTRY'
  return found, entry


def _parse(line: str) -> Instruction | None:
  head = re.match(r'\s+(?:ROOT )?%?([\w.-]+) = ', line)
  if head is None:
    return None
  rest = line[head.end() :]
  end = _closing(rest) + 1 if rest.startswith('(') else rest.index(' ')
  kind, rest = rest[:end], rest[end:].lstrip()
  call = re.match(r'([\w-]+)', rest)
  if call is None:
    return None
  inside = rest[call.end() :]
  close = _closing(inside)
  operands = tuple(re.findall(r'%([\w.-]+)', inside[:close]))
  return Instruction(head[1], call[1], _bytes(kind), operands, inside[1:])


def _closing(text: str) -> int:
  depth = 0
  for place, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if depth == 0:
      return place
  raise ValueError(f'unbalanced: {text[:80]}')


def _bytes(kind: str) -> int:
  total = 0
  for name, sizes in re.findall(r'(\w+)\[([\d,]*)\]', kind):
    count = math.prod(int(n) for n in sizes.split(',') if n)
    total += count * _BITS.get(name, 8) // 8
  return total


def _trips(rest: str, condition: Sequence[Instruction]) -> int:
  known = re.search(r'known_trip_count\D+(\d+)', rest)
  if known:
    return int(known[1])
  # Loops of scans count from 0: their bound is the one constant compared with.
  bounds = [
    int(value[0])
    for line in condition
    if line.op == 'constant' and (value := re.match(r'\d+', line.rest))
  ]
  return max(bounds, default=1)


def _branches(rest: str) -> list[str]:
  listed = re.search(r'branch_computations=\{([^}]*)\}', rest)
  if listed:
    return re.findall(r'%?([\w.-]+)', listed[1])
  return re.findall(r'(?:true|false)_computation=%?([\w.-]+)', rest)


def _groups(rest: str, devices: int) -> np.ndarray:
  """Reads the groups of devices that talk: [groups, devices of one]."""
  pairs = re.search(r'source_target_pairs=\{(.*?)\}\}', rest)
  if pairs:
    return np.array(re.findall(r'\{(\d+),(\d+)', pairs[0]), int)
  named = re.search(
    r'replica_groups=mesh\[([^\]]*)\](?:[^{]*)\{([^}]*)\}', rest
  )
  if named:
    sizes = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
    across = re.findall(r"'(\w+)'", named[2])
    ids = np.arange(devices).reshape(tuple(sizes.values()))
    places = [list(sizes).index(name) for name in across]
    last = range(-len(places), 0)
    ids = np.moveaxis(ids, places, tuple(last))
    return ids.reshape(-1, math.prod(sizes[name] for name in across))
  iota = re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest
  )
  if iota:
    shape, dims, order = (
      [int(n) for n in part.split(',')] if part else None
      for part in iota.groups()
    )
    assert shape is not None and dims is not None
    ids = np.arange(devices).reshape(dims)
    return (ids if order is None else ids.transpose(order)).reshape(shape)
  listed = re.search(r'replica_groups=\{(\{.*?\})\}', rest)
  if listed:
    return np.array(
      [
        [int(n) for n in group.split(',')]
        for group in re.findall(r'\{([\d,]+)\}', listed[1])
      ]
    )
  return np.arange(devices)[None]  # no groups: all devices


def _axes(groups: np.ndarray, mesh: dict[str, int]) -> tuple[str, ...]:
  """Names the mesh axes along which the devices of a group differ."""
  places = np.array(np.unravel_index(groups, tuple(mesh.values())))
  differ = (places != places[:, :, :1]).any(axis=(1, 2))
  return tuple(name for name, moves in zip(mesh, differ, strict=True) if moves)
