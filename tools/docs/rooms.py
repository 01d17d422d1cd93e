"""Reads which room of lm/ imports which, and arranges the rooms in floors."""

from collections.abc import Mapping
from pathlib import Path
import re
import tomllib

import grimp

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS, BASICS, ARITHMETIC = 'programs', 'basics', 'arithmetic'

Edges = dict[str, set[str]]


def _floors(root: Path) -> list[set[str]]:
  """Reads the floors of the import contract, the highest first."""
  with (root / 'pyproject.toml').open('rb') as file:
    contracts = tomllib.load(file)['tool']['importlinter']['contracts']
  (layers,) = [c['layers'] for c in contracts if c['type'] == 'layers']
  return [set(re.findall(r'\w+', layer)) for layer in layers]


def rooms(root: Path = ROOT) -> dict[str, list[str]]:
  """Lists the modules and packages at the top of lm/ by room.

  A package is a room of its own. The files at the top are three rooms: programs
  stand on the floor of `train` or above it, basics on the lowest, and
  arithmetic between them.
  """
  floors = _floors(root)
  highest = next((n for n, x in enumerate(floors) if 'train' in x), 0)
  found: dict[str, list[str]] = {PROGRAMS: [], ARITHMETIC: [], BASICS: []}
  for path in sorted((root / 'lm').iterdir()):
    name = path.stem
    if path.is_dir() and any(path.glob('*.py')):
      found[name] = [name]
    elif path.suffix == '.py' and name != '__init__':
      floor = next((n for n, x in enumerate(floors) if name in x), 0)
      place = BASICS if floor == len(floors) - 1 else ARITHMETIC
      found[PROGRAMS if floor <= highest else place].append(name)
  return {room: names for room, names in found.items() if names}


def edges(root: Path = ROOT) -> Edges:
  """Finds the rooms that each room imports."""
  home = {n: room for room, names in rooms(root).items() for n in names}
  graph = grimp.build_graph(
    'lm', cache_dir=None, exclude_type_checking_imports=True
  )
  found: Edges = {room: set() for room in rooms(root)}
  for module in graph.modules:
    if module == 'lm':
      continue
    room = home[module.split('.')[1]]
    for other in graph.find_modules_directly_imported_by(module):
      if other != 'lm' and home[other.split('.')[1]] != room:
        found[room].add(home[other.split('.')[1]])
  return found


def below(graph: Mapping[str, set[str]], room: str) -> set[str]:
  """Lists what a room imports, and what that imports, and so on."""
  known: set[str] = set()
  left = [room]
  while left:
    for other in graph[left.pop()] - known:
      known.add(other)
      left.append(other)
  return known


def floors(graph: Mapping[str, set[str]]) -> list[list[str]]:
  """Arranges rooms so that imports go down; the lowest floor first.

  Rooms that import each other stand on one floor.
  """
  reach = {room: below(graph, room) for room in graph}
  under = {
    room: {x for x in reach[room] if room not in reach[x]} for room in graph
  }
  # Rooms of a circle have the same rooms under them.
  level: dict[str, int] = {}
  for room in sorted(graph, key=lambda x: (len(under[x]), x)):
    level[room] = max((level[x] + 1 for x in under[room]), default=0)
  return [
    sorted(x for x in graph if level[x] == n)
    for n in range(max(level.values()) + 1)
  ]


def reduced(graph: Mapping[str, set[str]]) -> Edges:
  """Leaves out imports that follow from others, so that a figure is clear."""
  found: Edges = {}
  for room, targets in graph.items():
    found[room] = {
      x
      for x in targets
      if not any(
        x in below(graph, y) and room not in below(graph, y)
        for y in targets - {x}
      )
    }
  return found
