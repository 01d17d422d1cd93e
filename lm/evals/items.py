"""Stores the outcome of every single item, so that runs can be paired.

`WORKDIR/items/EVALUATOR/STEP.CHECKPOINT.jsonl.gz` holds JSON lines: a header,

    {"evaluator": ..., "step": ..., "checkpoint": ..., "task": ..., "code": ...}

where checkpoint, task and code are sha256 in hex: of the checkpoint's content,
of the evaluator's settings and files, and of its code. One object for each item
follows:

    {"id": "blimp/adjunct_island/17", "accuracy": 1, "group": "adjunct_island"}

A number is an outcome, null an outcome without a value for this item, and a
string a label. Items with the same label `group` were drawn together (from one
passage, from one template) and are not independent evidence. Categories have
other labels.
"""

from collections.abc import Iterable, Mapping
import gzip
import json
import os
from pathlib import Path
import re
from typing import Any
import zlib

from lm import config, errors
from lm.runtime import regular_files

_EVALUATOR = re.compile(r'\w[\w.+-]*')
_FILE = re.compile(r'(\d{8,})\.[0-9a-f]{12}\.jsonl\.gz')
_SHA256 = re.compile(r'[0-9a-f]{64}')


def write(
  workdir: str | os.PathLike[str],
  header: Mapping[str, Any],
  items: Iterable[Mapping[str, Any]],
) -> Path:
  """Writes a file as a whole or not at all; equal items give equal bytes.

  Args:
    workdir: folder of the run.
    header: the first line, see the module.
    items: the other lines. Each `id` occurs once, and numbers are finite;
      scalars of numpy will do.

  Returns:
    The path of the file.

  Raises:
    config.ConfigError: a folder cannot have the evaluator's name.
  """
  name = str(header['evaluator'])
  if not _EVALUATOR.fullmatch(name):
    raise config.ConfigError(
      f'evals.{name}: a folder cannot have this name: use letters and _'
    )
  records = [dict(header), *map(dict, items)]
  text = ''.join(f'{_dumps(record)}\n' for record in records).encode()
  path = Path(workdir) / 'items' / name / _name(header)
  problem = _problem([json.loads(line) for line in text.splitlines()], path)
  assert not problem, problem
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    with regular_files.writing(path), part.open('wb') as file:
      # Without a time and a name, which would differ between equal files.
      with gzip.GzipFile('', 'wb', 6, file, mtime=0) as packed:
        packed.write(text)
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)
  return path


def read(
  path: str | os.PathLike[str],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Reads a file: its header and its items, in their order.

  Raises:
    errors.Missing: there is no such file.
    errors.Damaged: the file was damaged, or is of another kind.
    errors.Storage: it cannot be read.
  """
  path, records = Path(path), []
  try:
    with regular_files.open_read(path) as file:
      text = gzip.decompress(file.read())
    records = [_loads(line) for line in text.splitlines()]
    problem = _problem(records, path)
  except FileNotFoundError:
    raise errors.Missing(f'{path}: no such file: evaluate the step') from None
  except (EOFError, ValueError, RecursionError, zlib.error, gzip.BadGzipFile):
    problem = 'its bytes are not those that were written'
  except OSError as error:
    raise errors.Storage(
      f'{errors.refusal(error)}: make it readable'
    ) from error
  if problem:
    raise errors.Damaged(
      f'{path}: no sound file of items: {problem}: delete it, evaluate again'
    )
  return records[0], records[1:]


def find(
  workdir: str | os.PathLike[str], step: int | None = None
) -> dict[str, Path]:
  """Finds the file of each evaluator for a step.

  If a step has several checkpoints, as after a run was rewound, the file that
  was written last counts.

  Args:
    workdir: folder of the run.
    step: of the checkpoint; None: the newest that the evaluator has.
  """
  files: dict[str, tuple[int, int, Path]] = {}
  for path in sorted((Path(workdir) / 'items').glob('*/*')):
    match = _FILE.fullmatch(path.name)
    if match is None or step not in (None, int(match[1])):
      continue
    key = int(match[1]), path.stat().st_mtime_ns, path
    files[path.parent.name] = max(key, files.get(path.parent.name, key))
  return {name: path for name, (*_, path) in files.items()}


def _name(header: Mapping[str, Any]) -> str:
  return f'{header["step"]:08d}.{header["checkpoint"][:12]}.jsonl.gz'


def _dumps(record: dict[str, Any]) -> str:
  return json.dumps(record, allow_nan=False, default=lambda x: x.item())


def _loads(line: bytes) -> Any:
  def refuse(word: str) -> Any:
    raise ValueError(word)

  return json.loads(line, parse_constant=refuse)


def _problem(records: list[Any], path: Path) -> str:
  """Says why records are no file of items; '' if they are one."""
  if not all(isinstance(record, dict) for record in records):
    return 'a line is no object'
  header, *rows = records or [{}]
  sound = (
    type(header.get('step')) is int
    and all(
      isinstance(header.get(key), str) and _SHA256.fullmatch(header[key])
      for key in ('checkpoint', 'task', 'code')
    )
    and header.get('evaluator') == path.parent.name
    and _name(header) == path.name
  )
  if not sound:
    return 'its header is not that of this name'
  names = [row.get('id') for row in rows]
  if not all(isinstance(name, str) for name in names):
    return 'an item has no id'
  if len(set(names)) < len(names):
    return 'an id is there twice'
  for row in rows:
    for key, value in row.items():
      if not isinstance(value, int | float | str | None):
        return f'{key} of {row["id"]} is no number, string or null'
  return ''
