"""The file evals.jsonl of a run: one line for each evaluation that was done.

  {"step": 120, "checkpoint": "9f...", "evaluator": "valid", "task": "3c...",
   "code": "77...", "metrics": {"valid/loss_nats": 1.5}}

`checkpoint` is a hash of the checkpoint's content; `task` and `code` are those
of `fingerprint`. These and the evaluator's name are the key of the line. A line
has `contamination` too, see lm.evals.contamination, and a `card`, if the
evaluator describes its questions.
"""

from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from lm.reporting import metrics_log

NAME = 'evals.jsonl'


class EvaluationKey(NamedTuple):
  """Names one evaluation: the same key, the same result."""

  checkpoint: str
  evaluator: str
  task: str
  code: str


class Record(TypedDict):
  """All metrics of one checkpoint, by 'EVALUATOR/METRIC'."""

  step: int
  checkpoint: str
  metrics: dict[str, Any]


def lines(path: Path) -> list[dict[str, Any]]:
  """Reads the lines of a file that may not be there yet, in their order.

  What is no evaluation is left out.
  """
  return [
    line
    for line in metrics_log.read(path)
    if all(isinstance(line.get(name), str) for name in EvaluationKey._fields)
    and isinstance(line.get('metrics'), dict)
  ]


def read(workdir: str | Path) -> list[Record]:
  """Reads the evaluations of a run, the earliest step first.

  The lines of a checkpoint become one record. If an evaluator has two lines, as
  after a change of its code, the later one counts.

  Args:
    workdir: folder of the run.
  """
  metrics: dict[tuple[int, str], dict[str, Any]] = {}
  for line in lines(Path(workdir) / NAME):
    state = line['step'], line['checkpoint']
    metrics.setdefault(state, {}).update(line['metrics'])
  return [
    Record(step=step, checkpoint=digest, metrics=values)
    for (step, digest), values in sorted(metrics.items(), key=lambda x: x[0][0])
  ]


def keys(path: Path) -> set[EvaluationKey]:
  """Lists the keys of the evaluations in a file that may not be there yet."""
  return {
    EvaluationKey(*(line[name] for name in EvaluationKey._fields))
    for line in lines(path)
  }
