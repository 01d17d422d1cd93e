from lm import errors


def test_a_long_text_keeps_place_cause_and_fix():
  place = '/' + 'a-folder-with-a-long-name/' * 8 + 'run/checkpoints'
  text = str(errors.Storage(f'{place}: step 2 not saved: disk full: make room'))
  assert text == (
    '.../a-folder-with-a-long-name/run/checkpoints: '
    'step 2 not saved: disk full: make room'
  )
  long = str(errors.Storage(f'x: {"cause " * 60}: make room'))
  assert len(long) <= 200 and '\n' not in long
  assert long.startswith('x: cause') and long.endswith('make room')
