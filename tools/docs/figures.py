"""Draws the figures of the documentation as SVG, the same bytes every time."""

from collections.abc import Mapping
import itertools
import json
from pathlib import Path
import random
import re

import matplotlib
from matplotlib.backends import backend_svg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from tools.docs import rooms as rooms_lib

_INK, _PAPER, _LINE = '#1b3a57', '#e8f0f7', '#7f93a6'
_ACCENT, _ACCENT_PAPER = '#b23a48', '#fbeceb'


def _save(figure: Figure, path: Path, data: object) -> None:
  """Writes a figure; `data` is what it shows, for `shown` to read."""
  # Text stays text: it can be searched, and no font changes the bytes.
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'lm'}):
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(
      path,
      format='svg',
      facecolor='white',
      metadata={'Date': None, 'Description': json.dumps(data, sort_keys=True)},
    )


def shown(path: Path) -> object:
  """Returns the data that a committed figure shows, None if there is none."""
  text = path.read_text(encoding='utf-8') if path.exists() else ''
  match = re.search(r'<dc:description>(.*?)</dc:description>', text, re.DOTALL)
  return match and json.loads(match[1].replace('&quot;', '"'))


def _axes(width: float, height: float):
  """Makes an empty figure whose units are inches."""
  figure = Figure(figsize=(width, height))
  backend_svg.FigureCanvasSVG(figure)
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set_axis_off()
  axes.set_xlim(0, width)
  axes.set_ylim(0, height)
  return figure, axes


def _box(axes, x, y, width, height, *, accent=False) -> None:
  """Draws a box around a middle."""
  axes.add_patch(
    FancyBboxPatch(
      (x - width / 2, y - height / 2),
      width,
      height,
      boxstyle='round,pad=0,rounding_size=0.08',
      edgecolor=_ACCENT if accent else _INK,
      facecolor=_ACCENT_PAPER if accent else _PAPER,
      linewidth=1.1,
      zorder=2,
    )
  )


def _arrow(axes, start, end, color=_LINE) -> None:
  axes.annotate(
    '',
    xy=end,
    xytext=start,
    arrowprops={
      'arrowstyle': '-|>',
      'color': color,
      'linewidth': 0.9,
      'shrinkA': 0,
      'shrinkB': 0,
    },
    zorder=1,
  )


def rooms_data(graph: Mapping[str, set[str]]) -> dict[str, list[str]]:
  """Makes plain lists of a graph of rooms."""
  return {room: sorted(graph[room]) for room in sorted(graph)}


_SLOTS = 11  # places on a floor, each half a box wide


def _cost(
  place: Mapping[str, int],
  level: Mapping[str, int],
  few: Mapping[str, set[str]],
) -> float:
  """Says how hard a figure is to read: lines under boxes, and their lengths."""
  cost = 0.0
  for room, targets in few.items():
    for other in sorted(targets):
      cost += abs(place[room] - place[other])
      rise = level[room] - level[other]
      for n in range(1, rise):
        x = place[room] + (place[other] - place[room]) * n / rise
        cost += sum(
          40.0 * max(0.0, 1.5 - abs(place[box] - x))
          for box in level
          if level[box] == level[room] - n
        )
  return cost


def _arrange(
  floors: list[list[str]], few: Mapping[str, set[str]]
) -> dict[str, int]:
  """Gives each room a place on its floor, so that few lines meet a box."""
  level = {room: n for n, floor in enumerate(floors) for room in floor}
  draw = random.Random(0)
  best: tuple[float, dict[str, int]] | None = None
  for _ in range(12):
    place = {}
    for floor in floors:
      first = [1 + 2 * n for n in range(len(floor))]
      place.update(zip(draw.sample(floor, len(floor)), first, strict=True))
    cost = _cost(place, level, few)
    for _ in range(1500):
      room, to = draw.choice(sorted(level)), draw.randrange(_SLOTS)
      moved = {**place, room: to}
      for other in level:
        # Boxes are two places wide: who stands there takes the old place.
        near = other != room and level[other] == level[room]
        if near and abs(moved[other] - to) < 2:
          moved[other] = place[room]
      on = sorted(moved[x] for x in level if level[x] == level[room])
      if any(b - a < 2 for a, b in itertools.pairwise(on)):
        continue
      if (new := _cost(moved, level, few)) <= cost:
        place, cost = moved, new
    if best is None or cost < best[0]:
      best = cost, place
  assert best is not None
  return best[1]


def draw_rooms(path: Path, root: Path = rooms_lib.ROOT) -> None:
  """Draws the rooms of lm/ and their imports, programs at the top."""
  graph, names = rooms_lib.edges(root), rooms_lib.rooms(root)
  floors, few = rooms_lib.floors(graph), rooms_lib.reduced(graph)
  width, step, box = 9.0, 1.12, (1.35, 0.5)
  figure, axes = _axes(width, step * len(floors))
  place = _arrange(floors, few)
  at = {
    room: ((place[room] + 1) * width / (_SLOTS + 1), (level + 0.5) * step)
    for level, floor in enumerate(floors)
    for room in floor
  }
  for room, targets in few.items():
    for other in sorted(targets):
      (x0, y0), (x1, y1) = at[room], at[other]
      if y0 == y1:  # they import each other
        if x0 < x1:
          y, left, right = y0, x0 + box[0] / 2, x1 - box[0] / 2
          _arrow(axes, (left, y), (right, y))
          _arrow(axes, (right, y), (left, y))
      else:
        # Lines leave and reach a box apart from each other.
        lean = max(-0.4, min(0.4, (x1 - x0) / 6))
        _arrow(axes, (x0 + lean, y0 - box[1] / 2), (x1 - lean, y1 + box[1] / 2))
  for room, (x, y) in at.items():
    modules = names[room]
    _box(axes, x, y, *box)
    if modules == [room]:
      axes.text(x, y, f'{room}/', ha='center', va='center', color=_INK, size=11)
    else:
      half = (len(modules) + 1) // 2
      text = '\n'.join(' '.join(p) for p in (modules[:half], modules[half:]))
      axes.text(
        x, y, text.strip(), ha='center', va='center', color=_INK, size=8.5
      )
  _save(figure, path, rooms_data(graph))


# How a checkpoint is written, in order: who does it, what, and whether it is
# the commit. The protocol is described in lm/checkpoint/__init__.py.
CHECKPOINT = (
  ('the loop', 'copies the state\nto host memory', False),
  ('a thread', 'checks the lease,\nmakes tmp.save.STEP.TOKEN', False),
  ('a thread', 'writes the arrays', False),
  ('a thread', 'syncs and hashes the files,\nwrites MANIFEST.json last', False),
  ('a thread', 'compares the hashes\nwith those in memory', False),
  ('a thread', 'checks the lease, renames\nthe folder to its number', True),
  ('a thread', 'deletes old steps that\nno read lock protects', False),
)


def draw_checkpoint(path: Path) -> None:
  """Draws the order in which the parts of a checkpoint are written."""
  width, row, box = 8.2, 0.78, (3.0, 0.56)
  top = 0.75
  height = row * len(CHECKPOINT) + top
  figure, axes = _axes(width, height)
  x, right = 2.7, 4.9
  axes.text(x, height - 0.35, 'what happens', ha='center', size=11, color=_INK)
  axes.text(
    right, height - 0.35, 'what a kill leaves here', size=11, color=_INK
  )
  ys = [height - top - (n + 0.5) * row + 0.1 for n in range(len(CHECKPOINT))]
  for n, ((who, text, commits), y) in enumerate(
    zip(CHECKPOINT, ys, strict=True)
  ):
    _box(axes, x, y, *box, accent=commits)
    color = _ACCENT if commits else _INK
    axes.text(x, y, text, ha='center', va='center', size=9, color=color)
    axes.text(
      x - box[0] / 2 - 0.12,
      y,
      f'{who}  {n + 1}',
      ha='right',
      va='center',
      size=9,
      color=color,
    )
    if n:
      _arrow(axes, (x, ys[n - 1] - box[1] / 2), (x, y + box[1] / 2), _INK)
  commit = next(n for n, x in enumerate(CHECKPOINT) if x[2])
  for first, last, text, accent in (
    (0, 0, 'the step before', False),
    (
      1,
      commit - 1,
      'the step before, and a folder tmp.save.*\nthat no reader looks at and '
      'the next\nwriter removes',
      False,
    ),
    (commit, len(CHECKPOINT) - 1, 'this step, whole and verified', True),
  ):
    color = _ACCENT if accent else _INK
    high, low = ys[first] + box[1] / 2, ys[last] - box[1] / 2
    axes.plot([right - 0.2] * 2, [low, high], color=color, linewidth=2)
    axes.text(right, (low + high) / 2, text, va='center', size=9.5, color=color)
  _save(figure, path, checkpoint_data())


def checkpoint_data() -> list[str]:
  """Lists the texts of the figure of a checkpoint."""
  return [text for _, text, _ in CHECKPOINT]
