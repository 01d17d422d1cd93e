"""Prints what a program needs to know of lm, as JSON.

  python -m tools.describe > lm.json

{"programs", "config", "functions", "exit_codes"}:

  programs    name, what it does, and its exit codes
  config      a key of a config: of training (configs/base.py) or of the data
              factory (configs/data/base.py), its default, as an expression of
              that file, and its comment. What stands below a function of that
              file, such as `attention()`, is a spec that other keys take.
  functions   that a config may name by `fn`: the parts, readers, forms,
              objectives, evaluators and stages. Each has its parameters with
              type, default and description, and what it returns: of an
              evaluator these are its metrics.
  exit_codes  of all programs

It is read from the sources, so it is never out of date. docs/automation.md says
how a program uses it.
"""

import argparse
import ast
from collections.abc import Iterator, Sequence
import inspect
import json
from pathlib import Path
import re
from typing import Any

from lm import config
from lm.config import exit_codes

_ROOT = Path(__file__).resolve().parent.parent
_CONFIGS = {
  'training': 'configs/base.py',
  'data': 'configs/data/base.py',
}
_SECTION = re.compile(r'^(Args|Returns|Raises|References?):', re.M)
_PARAMETER = re.compile(r'^(\w+): ', re.M)


def description() -> dict[str, Any]:
  """Describes programs, config keys, functions and exit codes."""
  return {
    'programs': [*programs()],
    'config': {name: [*keys(_ROOT / x)] for name, x in _CONFIGS.items()},
    'functions': [
      function(name) for name in sorted(config.FACTORIES | config.STAGES)
    ],
    'exit_codes': {str(k): v for k, v in config.EXIT_CODES.items()},
  }


def programs() -> Iterator[dict[str, Any]]:
  """Yields each program that is started by `python -m`."""
  for room in ('lm', 'tools'):
    for path in sorted((_ROOT / room).glob('**/*.py')):
      text = path.read_text(encoding='utf-8')
      if "if __name__ == '__main__':" not in text:
        continue
      parts = path.relative_to(_ROOT).with_suffix('').parts
      name = '.'.join(x for x in parts if x != '__main__')
      yield {
        'name': name,
        'about': _first_line(ast.get_docstring(ast.parse(text))),
        'exit_codes': {str(x.code): x.meaning for x in exit_codes.of(name)},
      }


def keys(path: Path) -> Iterator[dict[str, Any]]:
  """Yields the keys that a base config declares.

  A key is `model.depth`, or `attention().heads` if a function of the file
  declares it for a spec. The comment is that of its line, or the one above it.
  """
  lines = path.read_text(encoding='utf-8').splitlines()
  tree = ast.parse('\n'.join(lines))
  for part in tree.body:
    # `contamination` lists files of evaluation sets, and no keys.
    if isinstance(part, ast.FunctionDef) and part.name != 'contamination':
      start = '' if part.name == 'get_config' else f'{part.name}()'
      for node in ast.walk(part):
        # The first dict of a function is what it declares.
        if isinstance(node, ast.Dict):
          yield from _keys(node, start, lines)
          break


def _keys(
  node: ast.Dict, start: str, lines: Sequence[str]
) -> Iterator[dict[str, Any]]:
  for key, value in zip(node.keys, node.values, strict=True):
    if not isinstance(key, ast.Constant):
      continue
    name = f'{start}.{key.value}'.removeprefix('.')
    if isinstance(value, ast.Dict):
      yield from _keys(value, name, lines)
    else:
      yield {
        'key': name,
        'default': ast.unparse(value),
        'comment': _comment(lines, key.lineno - 1, value.end_lineno or 0),
      }


def _comment(lines: Sequence[str], first: int, last: int) -> str:
  """Reads the comment of the lines first..last - 1, or the one above them."""
  found = [_after(line) for line in lines[first:last]]
  if any(found):
    return ' '.join(filter(None, found))
  above = first
  while lines[above - 1].lstrip().startswith('#'):
    above -= 1
  return ' '.join(_after(line) for line in lines[above:first])


def _after(line: str) -> str:
  """Returns the comment of a line of code; '' without one."""
  # No text of these files has a number sign after a space.
  _, sign, comment = f' {line}'.partition(' # ')
  return comment.strip() if sign else ''


def function(name: str) -> dict[str, Any]:
  """Describes a function that a config may name."""
  found = config.resolve(name)
  about, sections = _sections(inspect.getdoc(found) or '')
  told = _parameters(sections.get('Args', ''))
  return {
    'fn': name,
    'about': about,
    'parameters': [
      {
        'name': x.name,
        'type': _type(x.annotation),
        'default': None if x.default is x.empty else repr(x.default),
        'is_required': x.default is x.empty,
        'about': told.get(x.name, ''),
      }
      for x in inspect.signature(found).parameters.values()
    ],
    'returns': sections.get('Returns', ''),
  }


def _type(annotation: Any) -> str:
  if annotation is inspect.Parameter.empty:
    return ''
  return inspect.formatannotation(annotation)


def _sections(text: str) -> tuple[str, dict[str, str]]:
  """Splits a docstring into its beginning and its sections."""
  about, *rest = _SECTION.split(text)
  pairs = zip(rest[::2], rest[1::2], strict=True)
  return about.strip(), {k: inspect.cleandoc(v) for k, v in pairs}


def _parameters(text: str) -> dict[str, str]:
  """Splits a section of arguments by their names."""
  _, *rest = _PARAMETER.split(text)
  return {
    name: ' '.join(about.split())
    for name, about in zip(rest[::2], rest[1::2], strict=True)
  }


def _first_line(text: str | None) -> str:
  return (text or '').partition('\n')[0]


def main(argv: Sequence[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.describe',
    description=__doc__,
    epilog=config.exit_code_help('tools.describe'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.parse_args(argv)
  print(json.dumps(description(), indent=1, ensure_ascii=False))


if __name__ == '__main__':
  config.main(main)
