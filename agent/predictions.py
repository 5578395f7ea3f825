"""The rules of predictions: when a target is full by its trend, and an alert before that.

A trend is taken of the recorded ratio, so that a filesystem that grows, or an XFS whose inodes shrink, is judged by how
full it is. There is none before a target was seen for half the window. A single jump is no trend: what raises the alert
must have grown in two spans one after the other. The alert goes on by the trend alone.
"""

from __future__ import annotations

import textwrap

from agent.units import Seconds
from agent.watermark import Prediction, Watermark


def alert_name(watermark: Watermark) -> str:
    """Return the alert's name: `UllageFilesystemBytesFillingUp`."""
    return f"{watermark.alert}FillingUp"


def recording(watermark: Watermark, prediction: Prediction) -> str:
    """Return the rule that records the seconds until a target is full; nothing where it does not fill."""
    ratio, window = f"ullage:{watermark.name}:ratio", Seconds(prediction.window)
    return f"""\
- record: ullage:{watermark.name}:time_to_full_seconds
  expr: |
    clamp_min(1 - predict_linear({ratio}[{window}], 0), 0) / (deriv({ratio}[{window}]) > 0)
    and present_over_time({ratio}[{window}] offset {Seconds(prediction.window / 2)})
    and {ratio}
"""


def alert(watermark: Watermark, prediction: Prediction, keep_firing_for: float, runbook_url: str) -> str:
    """Return the alert."""
    name, prefix, recent = alert_name(watermark), f"ullage:{watermark.name}:", Seconds(prediction.recent)
    expression = f"""\
(
  {prefix}time_to_full_seconds <= {prediction.raise_within:g}
  and {prefix}ratio >= {prediction.raise_from:g}
  and deriv({prefix}ratio[{recent}]) > 0
  and deriv({prefix}ratio[{recent}] offset {recent}) > 0
)
or
(
  {prefix}time_to_full_seconds <= {prediction.clear_within:g}
  and {prefix}ratio >= {prediction.clear_below:g}
  and ignoring (alertname, alertstate, severity, watermark)
  ALERTS{{alertname="{name}", alertstate="firing"}}
)"""
    title = watermark.name.replace("_", " ").capitalize()
    return f"""\
- alert: {name}
  expr: |
{textwrap.indent(expression, " " * 4)}
  for: {Seconds(prediction.hold)}
  keep_firing_for: {Seconds(keep_firing_for)}
  labels: {{severity: {prediction.severity}, watermark: {watermark.name}}}
  annotations:
    summary: '{title} of {{{{ $labels.target }}}} full in {{{{ $value | humanizeDuration }}}} at this rate'
    description: '{watermark.words} on {{{{ $labels.instance }}}}. By the trend of {Seconds(prediction.window)}; it \
fires at {Seconds(prediction.raise_within)} and over {prediction.raise_from:.0%}, and goes on until full is more than \
{Seconds(prediction.clear_within)} away.'
    runbook_url: '{runbook_url.format(alert=name)}'
"""
