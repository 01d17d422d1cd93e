"""Writes the tables, the plot and the page of a sweep."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm import checkpoint, config
from lm.evals.reports import html as report
from lm.evals.reports import stored
from lm.reporting import html
from lm.reporting import swept as picture
from lm.sweeping import folder as folder_lib
from lm.sweeping import points, results, schedule, trials


def swept(found: Iterable[Mapping[str, Any]]) -> list[str]:
  """Lists the keys that points set."""
  return list(dict.fromkeys(key for point in found for key in point))


def rows(
  base: trials.Base,
  folder: folder_lib.Folder,
  runs: Sequence[schedule.Run],
  recorded: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """Makes the row of each run, and of those that earlier commands finished.

  Args:
    base: the config that points change.
    folder: of the sweep.
    runs: of this command.
    recorded: all points that were ever asked for, by the name of their run.
  """
  plain, outcomes = config.flatten(base.config), folder.outcomes()
  keys = swept(recorded.values())
  asked = {run.trial.name: run for run in runs}
  found = []
  for name, point in recorded.items():
    run, outcome = asked.get(name), outcomes.get(name)
    if run is None and (outcome is None or outcome.state != 'done'):
      continue
    steps = checkpoint.steps(folder.run(name))
    step, rung = (steps or [0])[-1], run.rung if run else None
    state = run.state if run else 'done'
    if rung is not None:
      state, step = f'ended at {rung}', rung
    elif state == 'waiting' and step:
      is_last = run is not None and step >= run.trial.config.steps
      state = 'done' if is_last else 'unfinished'
    changes = run.trial.point if run else point
    found.append(
      {
        'name': name,
        **{key: changes.get(key, plain[key]) for key in keys},
        'state': state,
        'step': step,
        **results.metrics(results.lines(folder.run(name)), rung),
        'workdir': str(folder.run(name)),
        'error': run.error if run else '',
      }
    )
  return found


def write(
  folder: folder_lib.Folder,
  rows: Sequence[dict[str, Any]],
  swept: Sequence[str],
  metric: str,
  higher: bool,
) -> list[results.Row]:
  """Writes the tables and the plot.

  Args:
    folder: of the sweep.
    rows: of the runs.
    swept: keys that points set.
    metric: that the table is sorted by, and the plot shows.
    higher: whether higher is better.

  Returns:
    The table, see `results.table`.
  """
  table = results.table(rows, swept, metric, higher)
  for name, text in (
    ('table.csv', results.comma_separated(table)),
    ('table.md', results.markdown(table)),
    ('table.json', results.to_json(table, rows, metric)),
  ):
    folder_lib.replace(folder.path / name, text)
  keys = [key for key in results.keys(rows, swept) if key != points.SEED]
  plot = folder.path / 'plot.png'
  # All others have their metrics of an earlier step.
  whole = [row for row in table if row['state'] == 'done']
  if not picture.draw(plot, whole, keys, metric):
    plot.unlink(missing_ok=True)
  return table


def write_page(
  folder: folder_lib.Folder, rows: Sequence[Mapping[str, Any]], metric: str
) -> Path | None:
  """Writes the page that shows the runs, as `tools.report` does.

  Args:
    folder: of the sweep.
    rows: of the runs.
    metric: that recipes are ordered by, where an evaluator measured it.

  Returns:
    Its path; None if no run can be read here, as before the first one has
    begun, or where a launcher keeps them elsewhere.

  Raises:
    config.ConfigError: a run cannot be read.
    errors.Storage: the page cannot be written.
  """
  places = [Path(row['workdir']) for row in rows]
  places = [place for place in places if (place / 'config.json').is_file()]
  if not places:
    return None
  by = metric if '/' in metric and any(metric in row for row in rows) else None
  page = report.render(stored.read(places), asked=report.Asked(by=by))
  path = folder.path / 'page.html'
  html.write(path, page, '--workdir')
  return path
