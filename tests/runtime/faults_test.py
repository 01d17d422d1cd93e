"""The one variable that injects faults."""

import pytest

from lm.runtime import faults


def test_none_by_default(monkeypatch):
  monkeypatch.delenv('FAULT', raising=False)
  assert faults.at('nan_grad') == ()
  assert faults.seconds('slow_save') == 0
  faults.strike('die_in_save', 1)


def test_several_steps_ranges_and_seconds(monkeypatch):
  monkeypatch.setenv('FAULT', 'nan_grad@17, nan_grad@5-7,slow_delete@0.5')
  assert faults.at('nan_grad') == (17, 5, 6, 7)
  assert faults.seconds('slow_delete') == 0.5
  assert faults.at('die_in_delete') == ()


@pytest.mark.parametrize(
  ('text', 'error'),
  [
    ('nan_gard@3', 'FAULT=nan_gard@3: unknown fault; choose from nan_grad,'),
    ('nan_grad', 'FAULT=nan_grad: want nan_grad@STEP or FIRST-LAST'),
    ('nan_grad@7-5', 'want nan_grad@STEP or FIRST-LAST'),
    ('slow_save@soon', 'FAULT=slow_save@soon: want slow_save@SECONDS'),
    ('slow_save@-1', 'want slow_save@SECONDS'),
    ('slow_save@nan', 'want slow_save@SECONDS'),
  ],
)
def test_a_malformed_variable_is_refused(monkeypatch, text, error):
  monkeypatch.setenv('FAULT', text)
  with pytest.raises(ValueError, match=error) as caught:
    faults.at('nan_grad')
  assert len(str(caught.value)) <= 200
