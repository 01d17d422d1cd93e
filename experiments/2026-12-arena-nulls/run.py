"""Simulates boards on the stored losses: results.json and results.png.

PYTHONPATH=. python experiments/2026-12-arena-nulls/run.py
"""

from collections.abc import Sequence
import itertools
import json
import math
from pathlib import Path
import secrets
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from tools.arena import procedure, simulation

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / 'docs/images/arena.png'
RULES = procedure.DEFAULT
BOARDS, PROPOSALS, NULLS, GAINS = 1000, 200, 40, 200
TESTS = (1, 10)  # numbers of a test, for power
Runs = Sequence[tuple[float, float]]


def read(kind: str) -> Runs:
  """Reads the losses of a bank: on validation data and on the test split."""
  runs = json.loads((HERE / f'{kind}.json').read_text())['runs']
  return [(x['valid'], x['test']) for x in runs.values()]


def deviation(runs: Runs) -> float:
  """Gives the standard deviation of the test loss as a part of its mean."""
  losses = np.array([x for _, x in runs])
  return float(losses.std(ddof=1) / losses.mean())


def nulls(runs: Runs, effect: float, seed: int) -> dict[str, Any]:
  """Simulates boards of null proposals, and the best-so-far loop on them."""
  rng = np.random.default_rng(seed)
  losses = np.array([x for _, x in runs])
  boards, wins, gains = [], [], []
  for _ in range(BOARDS):
    boards.append(
      simulation.board(
        RULES, lambda: runs[rng.integers(len(runs))], PROPOSALS, effect
      )
    )
    drawn = rng.choice(losses, PROPOSALS + 1, replace=False)
    kept, gain = simulation.best_so_far(drawn)
    wins.append(kept)
    gains.append(gain / losses.std())
  accepted = sum(bool(x.accepted) for x in boards)
  return {
    'boards': BOARDS,
    'proposals': PROPOSALS,
    'effect': effect,
    'seed': seed,
    'boards_that_accept': accepted,
    'most_allowed': 0.05 + 3 * math.sqrt(0.05 * 0.95 / BOARDS),
    'runs_a_proposal': float(np.mean([np.mean(x.runs) for x in boards])),
    'tests_a_board': float(np.mean([x.tests for x in boards])),
    'best_so_far': {
      'wins': [int(x) for x in np.bincount(wins)],
      'mean_wins': float(np.mean(wins)),
      'mean_gain_deviations': float(np.mean(gains)),
      'gains': [round(float(x), 3) for x in gains],
    },
  }


def real_nulls(runs: Runs, effect: float, seed: int) -> dict[str, Any]:
  """Decides null proposals, none of whose runs is used twice."""
  shuffled = list(runs)
  np.random.default_rng(seed).shuffle(shuffled)
  pool = itertools.cycle(shuffled)
  found = simulation.board(RULES, lambda: tuple(next(pool)), NULLS, effect)
  return {
    'proposals': len(found.runs),
    'accepted': len(found.accepted),
    'runs': sum(found.runs),
    'tests': found.tests,
  }


def power(runs: Runs, effect: float, seed: int) -> list[dict[str, Any]]:
  """Counts how often a true gain of the stated effect is found, and how soon.

  The losses are stored ones, lowered by the gain. Their deviation is that of
  the bank.
  """
  rng = np.random.default_rng(seed)
  rows = []
  for test in TESTS:
    found = [
      simulation.board(
        RULES,
        lambda: runs[rng.integers(len(runs))],
        1,
        effect,
        gain=effect,
        tests=test - 1,
      )
      for _ in range(GAINS)
    ]
    runs_needed = sorted(x.runs[0] if x.accepted else 99 for x in found)
    rows.append(
      {
        'test': test,
        'effect': effect,
        'power': float(np.mean([bool(x.accepted) for x in found])),
        'runs_for_80_percent': runs_needed[math.ceil(0.8 * GAINS) - 1],
        'mean_runs': float(np.mean([x.runs[0] for x in found])),
      }
    )
  return rows


def draw(results: dict[str, Any]) -> None:
  """Draws false wins of both loops, and the gain that the first reports."""
  found = results['nulls']
  best = found['best_so_far']
  figure = Figure(figsize=(9, 3.2), layout='constrained')
  left, right = figure.subplots(1, 2)
  left.bar(
    range(len(best['wins'])),
    [x / BOARDS for x in best['wins']],
    label=f'best so far: {best["mean_wins"]:.1f} a board',
    color='C1',
  )
  accepted = found['boards_that_accept'] / BOARDS
  left.bar(
    [0, 1],
    [1 - accepted, accepted],
    width=0.3,
    label=f'arena: {found["boards_that_accept"]} of {BOARDS} boards',
    color='C0',
  )
  left.set(xlabel='false wins', ylabel='share of boards')
  left.legend()
  right.hist(best['gains'], 40, color='C1')
  right.axvline(0, color='C0', label='true gain')
  right.axvline(
    best['mean_gain_deviations'],
    color='k',
    linestyle='--',
    label=f'mean {best["mean_gain_deviations"]:.2f}',
  )
  right.set(
    xlabel='gain that best-so-far reports, in deviations of a run',
    ylabel='boards',
  )
  right.legend()
  for file in (HERE / 'results.png', PAGE):
    figure.savefig(file, dpi=120)


def main() -> None:
  """Writes results and figure."""
  seed = secrets.randbits(32)
  short, longer = read('short'), read('longer')
  # The shorter runs deviate more, and so 2 % is as hard to find there.
  results = {
    'rules': RULES._asdict(),
    'banks': {
      name: {
        'runs': len(runs),
        'mean': float(np.mean([x for _, x in runs])),
        'deviation': deviation(runs),
      }
      for name, runs in (('short', short), ('longer', longer))
    },
    'nulls': nulls(short, 0.02, seed),
    'real_nulls': real_nulls(short, 0.02, seed),
    'power': power(longer, 0.01, seed),
  }
  (HERE / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
  draw(results)
  results['nulls']['best_so_far'] = {
    k: v for k, v in results['nulls']['best_so_far'].items() if 'mean' in k
  }
  print(json.dumps(results, indent=1))


if __name__ == '__main__':
  main()
