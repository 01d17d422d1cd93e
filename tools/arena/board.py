"""A board as its ledger tells it: the baselines so far, and all proposals."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from lm import config
from tools.arena import evidence, ledger, procedure, runs

RUNS = 'runs'  # folder of a board


@dataclasses.dataclass
class Baseline:
  """A recipe that proposals have to beat.

  Attributes:
    name: of the proposal that it was; 'baseline' for the first.
    config: filled, as JSON.
    patches: of its code, on top of the board's.
    losses: of its runs so far.
    tests: how many proposals were tested against it.
  """

  name: str
  config: str
  patches: tuple[str, ...] = ()
  losses: procedure.Losses = procedure.NONE
  tests: int = 0

  @property
  def digest(self) -> str:
    """The hash that stands for config and code."""
    text = repr((self.config, self.patches))
    return hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()


@dataclasses.dataclass
class Proposal:
  """A proposal and its state.

  Attributes:
    name: given by who proposed it.
    effect: the stated one, as a part of the loss.
    config: filled, as JSON.
    patch: text, on top of the code of `base`; None without one.
    base: number of the baseline that it was made for.
    digest: of what it changes.
    changed: [before, after] by key.
    trial: its losses.
    confirmed_valid: losses on validation data of the runs that confirm.
    level: of its test; None before it.
    decision: the event of its decision; None before it.
  """

  name: str
  effect: float
  config: str
  patch: str | None
  base: int
  digest: str
  changed: Mapping[str, Any]
  trial: procedure.Trial
  confirmed_valid: tuple[float, ...] = ()
  level: float | None = None
  decision: Mapping[str, Any] | None = None


class Board:
  """The state of a board.

  Attributes:
    folder: that it lies in.
    settings: the ledger's first event.
    rules: its statistics.
    code: that its runs are made with.
    baselines: the earliest first; the last is that of now.
    proposals: in their order.
  """

  def __init__(self, folder: Path):
    """Reads and verifies the ledger.

    Raises:
      config.ConfigError: there is no board.
      errors.Damaged: the ledger was changed.
    """
    self.folder = folder
    events = ledger.read(folder)
    if not events:
      raise config.ConfigError(f'{folder}: is no board: make a new one')
    self.head = ledger.head(events)
    self.settings = events[0]
    self.rules = procedure.Rules(**self.settings['rules'])
    code = self.settings['code']
    self.code = runs.Code(code['lm'], code['commit'], tuple(code['patches']))
    self.baselines = [Baseline('baseline', self.settings['config'])]
    self.proposals: list[Proposal] = []
    for event in events[1:]:
      getattr(self, f'_on_{event["event"]}')(event)

  def _on_proposal(self, event: ledger.Event) -> None:
    names = ('name', 'effect', 'config', 'patch', 'base', 'digest', 'changed')
    self.proposals.append(
      Proposal(
        **{x: event[x] for x in names}, trial=procedure.Trial(event['effect'])
      )
    )

  def _on_run(self, event: ledger.Event) -> None:
    valid, sealed = (
      None if x not in event else math.inf if event[x] is None else event[x]
      for x in ('valid', 'sealed')
    )
    if event['of'] == 'baseline':
      old = self.baseline.losses
      assert valid is not None and sealed is not None
      self.baseline.losses = procedure.Losses(
        (*old.valid, valid), (*old.sealed, sealed)
      )
      return
    proposal, stage = self.find(event['of']), event['stage']
    value = valid if stage == 'screening' else sealed
    trial = proposal.trial
    losses = (*getattr(trial, stage), value)
    proposal.trial = trial._replace(**{stage: losses})
    if stage == 'confirming':
      assert valid is not None
      proposal.confirmed_valid = (*proposal.confirmed_valid, valid)

  def _on_test(self, event: ledger.Event) -> None:
    self.find(event['of']).level = event['level']
    self.baseline.tests += 1

  def _on_decision(self, event: ledger.Event) -> None:
    proposal = self.find(event['of'])
    proposal.decision = event
    if event['is_accepted']:
      patch = () if proposal.patch is None else (proposal.patch,)
      self.baselines.append(
        Baseline(
          proposal.name,
          event['config'],
          (*self.baseline.patches, *patch),
          procedure.Losses(proposal.confirmed_valid, proposal.trial.confirming),
        )
      )

  @property
  def baseline(self) -> Baseline:
    """The baseline of now."""
    return self.baselines[-1]

  @property
  def is_ready(self) -> bool:
    """Tells that the baseline has all its runs."""
    return len(self.baseline.losses.valid) >= self.rules.baseline_runs

  @property
  def next_level(self) -> float:
    """The level of the next test."""
    return evidence.granted(
      self.rules.level, len(self.baselines), self.baseline.tests + 1
    )

  def find(self, name: str) -> Proposal:
    """Finds a proposal by its name.

    Raises:
      config.ConfigError: there is none.
    """
    for proposal in self.proposals:
      if proposal.name == name:
        return proposal
    known = [x.name for x in self.proposals]
    raise config.ConfigError(
      f'{self.folder}: has no proposal {name}{config.did_you_mean(name, known)}'
    )

  def pending(self) -> Proposal | None:
    """Gives the first proposal without a decision."""
    return next((x for x in self.proposals if x.decision is None), None)

  def seed(self, of: str, stage: str, number: int) -> int:
    """Draws the seed of a run; no two runs of a board share one but by chance.

    Args:
      of: name of the proposal, or 'baseline'.
      stage: that it is run in.
      number: in the stage, from 0.
    """
    text = repr((self.settings['salt'], of, stage, number))
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) >> 1

  def workdir(self, of: str, stage: str, number: int) -> Path:
    """Names the folder of a run."""
    return self.folder / RUNS / of / f'{stage}-{number}'

  def deviation(self) -> float | None:
    """Estimates a run's standard deviation as a part of the mean loss.

    None while the baseline has fewer than two runs.
    """
    losses = np.array(self.baseline.losses.sealed)
    if len(losses) < 2 or not losses.mean():
      return None
    return float(losses.std(ddof=1) / losses.mean())

  def status(self) -> dict[str, Any]:
    """Describes the board as JSON."""
    valid, sealed = self.baseline.losses
    return {
      'task': self.settings['task'],
      'metric': self.settings['metric'],
      'level': self.rules.level,
      'tests': sum(x.tests for x in self.baselines),
      'spent': sum(x.level or 0.0 for x in self.proposals),
      'head': self.head,
      'baseline': {
        'name': self.baseline.name,
        'runs': len(sealed),
        'of': self.rules.baseline_runs,
        'valid': _mean(valid),
        'sealed': _mean(sealed),
        'deviation': self.deviation(),
      },
      'proposals': [_row(x) for x in self.proposals],
    }


def outcome(
  board: Board, proposal: Proposal, found: procedure.Decision
) -> dict[str, Any]:
  """Describes a decision for the ledger, with what was measured.

  `gain` is by how much the losses are lower, `relative` the same as a part of
  the baseline's, and `interval` Student's at 95 %, of this stage alone: that of
  a test that could stop early is a little too high, and that of the runs that
  confirm is not. Each of the `bounds` holds for all tests of the board at once;
  None where these runs are too few for a bound.
  """
  trial, losses = proposal.trial, board.baseline.losses
  content: dict[str, Any] = {
    'of': proposal.name,
    **found._asdict(),
    'runs': {x: len(getattr(trial, x)) for x in trial._fields[1:]},
  }
  baseline = losses.valid if found.stage == 'screening' else losses.sealed
  measured = getattr(trial, found.stage, ())
  if len(measured) and np.isfinite(measured).all():
    gain, low, high = evidence.interval(np.array(baseline), np.array(measured))
    mean = float(np.mean(baseline))
    content |= {
      'gain': gain,
      'relative': gain / mean,
      'interval': [low, high],
    }
  if trial.test and proposal.level is not None:
    sides = np.array(losses.sealed), np.array(trial.test)
    limit = evidence.needed(proposal.level)
    content |= {
      'log_evidence': float(evidence.log_evidence(*sides)),
      'log_needed': limit,
      'bounds': list(evidence.bounds(*sides, limit)),
    }
  return content


def _mean(losses: Sequence[float]) -> float | None:
  return float(np.mean(losses)) if losses else None


def _row(proposal: Proposal) -> dict[str, Any]:
  decision = proposal.decision or {}
  if proposal.decision is None:
    state = 'pending'
  else:
    state = 'accepted' if decision['is_accepted'] else 'rejected'
  trial = proposal.trial
  return {
    'name': proposal.name,
    'state': state,
    'effect': proposal.effect,
    'stage': decision.get('stage'),
    'reason': decision.get('reason'),
    'relative': decision.get('relative'),
    'interval': decision.get('interval'),
    'runs': {x: len(getattr(trial, x)) for x in trial._fields[1:]},
    'changed': dict(proposal.changed),
    'is_patch': proposal.patch is not None,
  }
