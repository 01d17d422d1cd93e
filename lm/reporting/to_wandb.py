"""Writes a run's metrics for Weights & Biases: the door of wandb."""

from collections.abc import Iterator, Mapping
import importlib
import json
import os
from pathlib import Path
import shutil
import struct
from typing import Any

from lm.reporting import writers
from lm.runtime import regular_files

_BLOCK = 1 << 15  # of a .wandb file


class _Wandb:
  def __init__(self, run: Any, seen: writers.Seen | None):
    self._run, self.seen = run, seen

  def write(self, step: int, values: Mapping[str, float]) -> None:
    # As a value beside the others: W&B's own step takes one line only, and
    # there may be several, such as those of two evaluators.
    self._run.log({'step': step, **values})

  def close(self) -> None:
    self._run.finish()


def make(about: writers.About) -> writers.Writer:
  """Writes to RUN/wandb, or to a server if WANDB_MODE=online says so.

  A run that is started again goes on with the W&B run of the same id.

  Args:
    about: the run.
  """
  wandb: Any = importlib.import_module('wandb')
  mode = os.environ.get('WANDB_MODE', 'offline')
  seen = _seen(about) if mode == 'offline' else None
  run = wandb.init(
    project=about.project,
    name=about.name,
    id=about.id,
    dir=str(about.folder),
    config=dict(about.config),
    mode=mode,
    # Offline there is no server to ask for the run that goes on. But the files
    # say that they are parts of one, and so `wandb sync` lets W&B's own step,
    # by which charts sort lines, count on from part to part.
    resume='allow',
    reinit='create_new',  # a notebook may train several runs at once
    settings=wandb.Settings(console='off', silent=True),
  )
  run.define_metric('step')
  run.define_metric('*', step_metric='step')
  return _Wandb(run, seen)


def _seen(about: writers.About) -> writers.Seen:
  """Reads the last line that earlier starts of a run have left.

  W&B writes its files in blocks of 32 KiB. A kill leaves half a record at the
  end of one, or none at all, at which `wandb sync` would stop and upload none
  of the later files. So the end is cut off, and a file of no record removed.
  """
  proto: Any = importlib.import_module('wandb.proto.wandb_internal_pb2')
  last, names = -1, set()
  for path in parts(about.folder, about.id):
    found = [*records(path)]
    for content, _ in found:
      record = proto.Record()
      record.ParseFromString(content)
      line = {
        '/'.join(x.nested_key) or x.key: x.value_json
        for x in record.history.item
      }
      if 'step' in line:
        step = json.loads(line.pop('step'))
        names = {*line, *(names if step == last else ())}
        last = step
    if found:
      os.truncate(path, found[-1][1])
    else:
      shutil.rmtree(path.parent)
  return last, sorted(x for x in names if not x.startswith('_'))


def parts(folder: Path, id_: str) -> list[Path]:
  """Lists the files of earlier starts, the first one first.

  A link is none of them, since it could lead out of the run.
  """
  kind = regular_files.kind
  return sorted(
    path
    for path in folder.glob(f'wandb/offline-run-*/*{id_}.wandb')
    if kind(path) == 'file' and kind(path.parent) == 'folder'
  )


def records(path: Path) -> Iterator[tuple[bytes, int]]:
  """Yields the records of a .wandb file, up to what a kill has cut.

  Each comes with the place in the file at which it ends.

  It is a log of LevelDB behind seven bytes. A record has one part (kind 1), or
  a first, some middle and a last part (2, 3, 4), each with a header of seven
  bytes: a checksum, the length and the kind. No header crosses a block's end.
  """
  content, place, record = path.read_bytes(), 7, b''
  while place + 7 <= len(content):
    left = _BLOCK - place % _BLOCK
    if left < 7:
      place += left
      continue
    length, kind = struct.unpack('<HB', content[place + 4 : place + 7])
    part = content[place + 7 : place + 7 + length]
    if kind not in (1, 2, 3, 4) or len(part) < length:
      return
    place += 7 + length
    record = part if kind in (1, 2) else record + part
    if kind in (1, 4):
      yield record, place
