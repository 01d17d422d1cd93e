"""One table of exit codes; tests/docs/pages_test.py holds README to it."""

import re

from lm import config
from lm.config import exit_codes
from tests import programs


def test_every_code_of_an_error_is_in_the_table():
  known = set(config.EXIT_CODES)
  files = [
    path
    for folder in ('lm', 'tools')
    for path in (programs.ROOT / folder).rglob('*.py')
  ]
  codes = {
    int(code)
    for path in files
    for code in re.findall(r'exit_code = (\d+)', path.read_text())
  }
  assert {2, 3, 4, 5, 6, 7, 8, 9} <= codes <= known


def test_a_program_has_its_own_meanings_and_those_of_all():
  codes = {entry.code: entry.meaning for entry in exit_codes.of('lm.plan')}
  assert codes[3] == 'the run does not fit the machine'
  assert set(codes) == {0, 1, 2, 3, 5, 130}
  train = {entry.code for entry in exit_codes.of('lm.train')}
  assert train == {0, 1, 2, 3, 4, 5, 6, 7, 10, 130, 143}
  slurm = {entry.code for entry in exit_codes.of('tools.launch.slurm')}
  assert slurm == train | {8}
  assert 8 not in {entry.code for entry in exit_codes.of('tools.launcher')}


def test_every_program_shows_its_exit_codes():
  for name in {x for entry in exit_codes._TABLE for x in entry.programs}:
    if name == 'tools.launch':  # whose programs share a parser
      name = 'tools.launch.arguments'
    path = programs.ROOT / name.replace('.', '/')
    path = path / '__main__.py' if path.is_dir() else path.with_suffix('.py')
    text = path.read_text()
    own = f"config.exit_code_help('{name}')" in text
    assert own or 'config.parse(' in text or 'exit_code_help(program)' in text
