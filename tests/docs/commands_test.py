"""Every command of README and docs works, on tiny data and for a few steps.

A failure means that a reader who follows the page meets an error. A block that
needs what is not here stands behind `<!-- needs: ... -->`; of its commands the
flags are checked.
"""

from collections.abc import Iterator
import gzip
import json
import os
from pathlib import Path
import random
import re
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

from lm import config
from lm.config import files

ROOT = Path(__file__).resolve().parents[2]
# README.zh.md has the same commands as README.md, by a test of pages_test.py.
PAGES = ('README.md', *(f'docs/{x.name}' for x in (ROOT / 'docs').glob('*.md')))
FIRST = 'docs/get-started.md'  # makes the run that other pages go on with
QUICK = {
  'steps': '4',
  'save_every': '2',
  'log_every': '1',
  'optim.warmup': '1',
  'batch_size': '8',
  'data.length': '32',
  'model.width': '64',
  'model.depth': '1',
  'evals.valid.length': '32',
}
VOCAB = 400
TEXT = (
  'the quick brown fox jumps over a lazy dog while seven wizards quietly mix '
  'big pots of soup and nobody knows why they return there every evening'
)

pytestmark = [pytest.mark.slow, pytest.mark.process]


class Block(NamedTuple):
  """A block of code on a page."""

  page: str
  line: int
  language: str
  text: str
  needs: str


def blocks(page: str) -> Iterator[Block]:
  """Yields the blocks of a page that a reader would run."""
  needs, language, start = '', '', 0
  lines: list[str] = []
  text = (ROOT / page).read_text(encoding='utf-8')
  for n, line in enumerate(text.splitlines(), 1):
    if language:
      if line.strip() == '```':
        yield Block(page, start, language, '\n'.join(lines), needs)
        needs, language, lines = '', '', []
      else:
        lines.append(line)
    elif match := re.fullmatch(r'```(\S+)', line):
      language, start = match[1], n
    elif match := re.fullmatch(r'<!-- needs: (.+) -->', line):
      needs = match[1]
    elif line.strip():
      needs = ''


def commands(block: Block) -> list[list[str]]:
  """Parts the text of a bash block into commands, and these into words."""
  text = block.text.replace('\\\n', ' ')
  split = [shlex.split(line, comments=True) for line in text.splitlines()]
  return [words for words in split if words]


def module(words: list[str]) -> tuple[dict[str, str], list[str]] | None:
  """Parts `A=B python -m x.y --z` into settings and words, None for others."""
  settings = {}
  while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
    name, _, value = words[0].partition('=')
    settings[name] = value
    words = words[1:]
  if words[:2] != ['python', '-m']:
    return None
  return settings, words[2:]


def plant(folder: Path) -> None:
  """Makes a folder that looks like a checkout, with tiny texts in it."""
  for name in ('configs', 'experiments', 'lm', 'tools', 'Makefile'):
    (folder / name).symlink_to(ROOT / name)
  rng, words = random.Random(0), TEXT.split()
  texts = [' '.join(rng.choices(words, k=60 + i % 50)) for i in range(400)]
  rows = [json.dumps({'text': f'{i}. {text}.'}) for i, text in enumerate(texts)]
  (folder / 'raw').mkdir()
  with gzip.open(folder / 'raw' / 'web.jsonl.gz', 'wt') as file:
    file.write('\n'.join(rows))
  (folder / 'notes').mkdir()
  for i, text in enumerate(texts[:20]):
    (folder / 'notes' / f'{i}.txt').write_text(f'Note {i}: {text[::-1]}.')
  embedded = folder / 'data' / 'embedded' / 'raw'
  embedded.mkdir(parents=True)
  (embedded / 'train.jsonl').write_text('\n'.join(rows))
  (embedded / 'valid.jsonl').write_text('\n'.join(rows[:40]))


def quick(words: list[str]) -> list[str]:
  """Makes a command small: few steps, short rows, a small vocabulary."""
  name = words[0]
  if name == 'lm.train':
    return [*words, *(f'--config.{k}={v}' for k, v in QUICK.items())]
  if name == 'lm.sweep':
    short = [re.sub('^--halving=.*', '--halving=2:0.5', x) for x in words]
    return [*short, *(f'--config.{k}={v}' for k, v in QUICK.items())]
  if name == 'lm.sample':
    return [*words, '--length=8']
  if name == 'tools.train_tokenizer':
    return [re.sub('^--vocab=.*', f'--vocab={VOCAB}', x) for x in words]
  if name == 'tools.factory':
    return [*words, '--workers=1', f'--config.train_tokenizer.vocab={VOCAB}']
  return words


def write_files(page: str, folder: Path) -> None:
  """Writes the files of a page: blocks of Python that begin with a name."""
  for block in blocks(page):
    if name := re.match(r'# (\w+\.py)\n', block.text):
      (folder / name[1]).write_text(block.text)


def runnable(page: str) -> list[tuple[dict[str, str], list[str] | str]]:
  """Lists what is run of a page: settings of the environment, and a command."""
  found: list[tuple[dict[str, str], list[str] | str]] = []
  for block in blocks(page):
    if block.needs:
      continue
    if block.language == 'python' and block.text.startswith('import lm'):
      given = "{'steps': 200}"
      assert given in block.text, 'the test shortens runs of 200 steps'
      found.append(({}, block.text.replace(given, repr(dict(QUICK)))))
    elif block.language == 'bash':
      for words in commands(block):
        parts = module(words)
        if words[0] == 'make':
          continue  # see below
        assert parts, f'{page}:{block.line}: {words}: run it, or mark its needs'
        settings, words = parts
        if words[0] != 'tools.embedded_text':  # planted: that takes long
          found.append((settings, quick(words)))
  return found


def run(page: str, folder: Path) -> None:
  """Runs the commands of a page, in as few processes as is honest.

  Code, and commands with settings of their own, have a process of their own.
  """
  write_files(page, folder)
  groups: list[tuple[dict[str, str], list[list[str] | str]]] = []
  for settings, command in runnable(page):
    code = isinstance(command, str)
    if not groups or groups[-1][0] != settings or code:
      groups.append((settings, []))
    groups[-1][1].append(command)
  for settings, group in groups:
    done = subprocess.run(
      [sys.executable, '-m', 'tests.docs.run_commands'],
      input=json.dumps(group),
      cwd=folder,
      env={
        # As at a user's: what tests trust is not trusted.
        **{
          name: value
          for name, value in os.environ.items()
          if name not in ('JAX_NUM_CPU_DEVICES', 'LM_TRUST')
        },
        'XLA_FLAGS': '',
        'JAX_PLATFORMS': 'cpu',
        'PYTHONPATH': str(ROOT),
        **settings,
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture(scope='module')
def started(tmp_path_factory) -> Path:
  """A folder in which somebody has followed the first page."""
  folder = tmp_path_factory.mktemp('started')
  plant(folder)
  run(FIRST, folder)
  return folder


@pytest.mark.parametrize('page', [x for x in PAGES if runnable(x)])
def test_commands_work(page, started, tmp_path):
  if page == FIRST:
    assert (started / 'runs' / 'a' / 'evals.jsonl').exists()
    return
  folder = tmp_path / 'checkout'
  shutil.copytree(started, folder, symlinks=True)
  if page == 'README.md':
    shutil.rmtree(folder / 'runs')
  run(page, folder)


def needing() -> list[tuple[Block, list[str]]]:
  """Lists the commands that cannot be run here: a module and its words."""
  return [
    (block, parts[1])
    for page in PAGES
    for block in blocks(page)
    if block.language == 'bash' and block.needs
    for words in commands(block)
    if (parts := module(words))
  ]


def helps(names: set[str]) -> dict[str, str]:
  """Asks programs for their help, all in one process."""
  code = (
    'import contextlib, io, json, runpy, sys\n'
    'texts = {}\n'
    f'for name in {sorted(names)}:\n'
    '  sys.argv, out = [name, "--help"], io.StringIO()\n'
    '  with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):\n'
    '    runpy.run_module(name, run_name="__main__", alter_sys=True)\n'
    '  texts[name] = out.getvalue()\n'
    'print(json.dumps(texts))'
  )
  done = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', code],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  return json.loads(done.stdout)


def test_flags_of_what_cannot_be_run_are_known(monkeypatch):
  monkeypatch.chdir(ROOT)
  texts = helps({words[0] for _, words in needing()})
  wrong = []
  for block, words in needing():
    text = texts[words[0]]
    where = f'{block.page}:{block.line}: {words[0]}'
    ours, _, rest = ' '.join(words[1:]).partition(' -- ')
    flags = re.findall(r'(?<!\S)--([\w-]+(?:\.[\w.]+)?)', ours)
    flags = [x for x in flags if not x.startswith('config.')]
    wrong += [f'{where} --{x}' for x in flags if f'--{x}' not in text]
    for line in (ours, rest):
      given = dict(re.findall(r'--(config[\w.]*)=(\S*)', line))
      name = given.pop('config', '')
      if name.startswith('configs/') and 'FOLDER' not in name:
        changes = [(k.removeprefix('config.'), v) for k, v in given.items()]
        required = () if words[0] == 'tools.factory' else files.REQUIRED
        config.load(name, changes, required=required)
  assert not wrong


def test_make_knows_the_targets_that_pages_name():
  known = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M))
  for page in [*PAGES, 'CONTRIBUTING.md']:
    text = (ROOT / page).read_text(encoding='utf-8')
    code = '\n'.join(re.findall(r'```bash\n.*?^```', text, re.S | re.M))
    marked = r'`make ([\w-]+)|^ {4}make ([\w-]+)'
    named = {a or b for a, b in re.findall(marked, text, re.MULTILINE)}
    named |= set(re.findall(r'^make ([\w-]+)', code, re.MULTILINE))
    assert named <= known, page


def test_complete_configs_of_pages_load(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT))
  monkeypatch.syspath_prepend(str(tmp_path))
  count = 0
  for page in PAGES:
    if page == 'docs/extending.md':
      continue  # its examples have a test of their own
    write_files(page, tmp_path)
    for block in blocks(page):
      if block.language == 'python' and 'def get_config' in block.text:
        path = tmp_path / f'page{count}.py'
        path.write_text(block.text)
        required = () if 'configs.data' in block.text else files.REQUIRED
        config.load(str(path), [], required=required)
        count += 1
  assert count


@pytest.mark.parametrize('launcher', ['tpu_vm', 'slurm', 'gke'])
def test_launchers_of_pages_print_what_they_would_do(launcher):
  name, count = f'tools.launch.{launcher}', 0
  for block, words in needing():
    if words[0] != name:
      continue
    # What stands before the command and `--` is for the launcher.
    extra = ['--dry_run', *['--commit=HEAD'] * (launcher == 'tpu_vm')]
    words = [name, *extra, *words[1:]]
    done = subprocess.run(
      [sys.executable, '-m', *words],
      cwd=ROOT,
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, f'{block.page}:{block.line}: {done.stderr}'
    assert done.stdout
    count += 1
  assert count
