"""Writes the address of the repository wherever a page names it.

  python -m tools.repository https://github.com/someone/lm.git

The address is one value in pyproject.toml, `project.urls.Repository`. The pages
below repeat it, since a reader copies commands from them; a test checks that
they agree. The badges of notebooks name the repository alone, as OWNER/NAME:
Colab and Kaggle open notebooks of GitHub.
"""

import argparse
from pathlib import Path
import re
import tomllib

ROOT = Path(__file__).resolve().parent.parent
PAGES = ('README.md', 'README.zh.md', 'CITATION.cff', 'docs', 'experiments')
_SUFFIXES = ('.md', '.cff', '.ipynb', '.py')
_BADGES = ('github/', 'github.com/')  # of Colab and of Kaggle, before the name


def address(root: Path = ROOT) -> str:
  """Returns the address that pyproject.toml gives."""
  with (root / 'pyproject.toml').open('rb') as file:
    return tomllib.load(file)['project']['urls']['Repository']


def pages(root: Path = ROOT) -> list[Path]:
  """Lists the files that may name the address."""
  found = []
  for name in PAGES:
    path = root / name
    files = [path] if path.is_file() else sorted(path.rglob('*'))
    found += [x for x in files if x.suffix in _SUFFIXES and x.is_file()]
  return [x for x in found if '_build' not in x.parts]


def move(new: str, root: Path = ROOT) -> list[Path]:
  """Replaces the address everywhere; returns the files that changed.

  Raises:
    ValueError: `new` is not an https address that git can clone.
  """
  if not re.fullmatch(r'https://[\w.-]+(/[\w.~-]+)+', new):
    raise ValueError(
      f'{new!r}: not an address such as https://HOST/OWNER/lm.git'
    )
  old, changed = address(root), []
  for path in [root / 'pyproject.toml', *pages(root)]:
    text = path.read_text(encoding='utf-8')
    moved = text.replace(old, new)
    for start in _BADGES:
      moved = moved.replace(
        f'{start}{_name(old)}/blob/', f'{start}{_name(new)}/blob/'
      )
    if moved != text:
      path.write_text(moved, encoding='utf-8')
      changed.append(path)
  return changed


def badge(notebook: str, root: Path = ROOT) -> tuple[str, str]:
  """Returns the addresses that open a notebook on Colab and on Kaggle.

  Args:
    notebook: its path in the repository.
    root: of the checkout.
  """
  name = f'{_name(address(root))}/blob/main/{notebook}'
  colab, kaggle = (f'{start}{name}' for start in _BADGES)
  return (
    f'https://colab.research.google.com/{colab}',
    f'https://kaggle.com/kernels/welcome?src=https://{kaggle}',
  )


def _name(where: str) -> str:
  """Cuts OWNER/NAME out of an address."""
  return where.removeprefix('https://').partition('/')[2].removesuffix('.git')


def main() -> None:
  """Runs the program."""
  parser = argparse.ArgumentParser(
    prog='python -m tools.repository',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('address', help='such as https://HOST/OWNER/lm.git')
  try:
    for path in move(parser.parse_args().address):
      print(path.relative_to(ROOT))
  except ValueError as error:
    parser.error(str(error))


if __name__ == '__main__':
  main()
