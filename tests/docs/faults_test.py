"""The table of faults in docs/fault-tolerance.md names tests that exist."""

from pathlib import Path
import re

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'fault-tolerance.md'
ROW = re.compile(
  r'^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$', re.MULTILINE
)


def test_every_fault_has_a_test_that_exists():
  rows = ROW.findall(PAGE.read_text(encoding='utf-8'))
  assert [int(row[0]) for row in rows] == list(range(1, 46))
  for number, _, _, shown in rows:
    names = re.findall(r'(tests/[\w/]+_test\.py)(?:::(\w+))?', shown)
    assert names, number
    for file, test in names:
      code = (ROOT / file).read_text(encoding='utf-8')
      assert not test or f'def {test}(' in code, (file, test)
