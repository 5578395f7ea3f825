"""The rules of what belongs to no collector: the agent's own health, and one alert for the findings of each severity.

Whether a target is ours is told by what it, or others of its job, served within the last hour: a job may have any name.
A node whose agent is down then has an alert also if it never came up. When all of a job are down at once, the alert
itself remembers.
"""

from __future__ import annotations

AGENT = """\
- name: ullage-agent
  rules:
    - alert: UllageTargetDown
      expr: |
        up == 0
        and on (job) (
          count by (job) (present_over_time(ullage_build_info[1h]))
          or count by (job) (ALERTS{alertname="UllageTargetDown", alertstate="firing"})
        )
      for: 4m
      keep_firing_for: KEEP_FIRING_FOR
      labels: {severity: warning}
      annotations:
        summary: 'No storage metrics from {{ $labels.instance }}'
        description: 'Job {{ $labels.job }} cannot be scraped: nothing else is told of this node.'
        runbook_url: 'RUNBOOK(UllageTargetDown)'
    - alert: UllageAbsent
      expr: absent(ullage_build_info)
      for: 4m
      keep_firing_for: KEEP_FIRING_FOR
      labels: {severity: critical}
      annotations:
        summary: 'No node has storage metrics'
        description: 'Prometheus has no series of any agent: no storage alert can fire.'
        runbook_url: 'RUNBOOK(UllageAbsent)'
    # two of five: one that fails each second time is failing too, however few scrapes fall into five minutes
    - alert: UllageCollectorFailing
      expr: |
        avg_over_time(ullage_collector_up[5m]) <= 0.6
        unless max_over_time(ullage_collector_overdue[5m]) == 1
      for: 1m
      keep_firing_for: KEEP_FIRING_FOR
      labels: {severity: warning}
      annotations:
        summary: 'Collector {{ $labels.collector }} fails'
        description: 'On {{ $labels.instance }}. The status page says why.'
        runbook_url: 'RUNBOOK(UllageCollectorFailing)'
    - alert: UllageCollectorOverdue
      expr: avg_over_time(ullage_collector_overdue[5m]) >= 0.4
      for: 1m
      keep_firing_for: KEEP_FIRING_FOR
      labels: {severity: warning}
      annotations:
        summary: 'Collector {{ $labels.collector }} does not end'
        description: 'On {{ $labels.instance }} a run is out for longer than its deadline: what it reads hangs.'
        runbook_url: 'RUNBOOK(UllageCollectorOverdue)'
    - alert: UllagePageWithdrawn
      expr: ullage_collector_page_withdrawn == 1
      for: 1m
      keep_firing_for: KEEP_FIRING_FOR
      labels: {severity: warning}
      annotations:
        summary: 'No series of the collector {{ $labels.collector }}'
        description: 'On {{ $labels.instance }} its last success is too long ago: its alerts cannot fire.'
        runbook_url: 'RUNBOOK(UllagePageWithdrawn)'
    - alert: UllageSeriesDropped
      expr: increase(ullage_collector_series_dropped_total[5m]) > 0
      for: 1m
      keep_firing_for: KEEP_FIRING_FOR
      labels: {severity: warning}
      annotations:
        summary: 'Collector {{ $labels.collector }} has more series than its budget'
        description: 'On {{ $labels.instance }} {{ $value | humanize }} samples were dropped in five minutes.'
        runbook_url: 'RUNBOOK(UllageSeriesDropped)'
    - alert: UllageConfigReloadFailed
      expr: ullage_config_last_reload_successful == 0
      for: 1m
      keep_firing_for: KEEP_FIRING_FOR
      labels: {severity: warning}
      annotations:
        summary: 'The configuration of {{ $labels.instance }} was refused'
        description: 'The agent goes on with the one before; its log says what is wrong. A restart would fail.'
        runbook_url: 'RUNBOOK(UllageConfigReloadFailed)'
"""

_FINDING = """\
    - alert: UllageFinding{title}
      expr: ullage_finding{{severity="{severity}"}} == 1
      for: {hold}
      keep_firing_for: KEEP_FIRING_FOR
      labels: {{severity: {severity}}}
      annotations:
        summary: '{{{{ $labels.finding }}}}: {{{{ $labels.target }}}}'
        description: 'On {{{{ $labels.instance }}}}. Its status page and `ullage doctor` say what it is and what to do.'
        runbook_url: 'RUNBOOK(UllageFinding{title})#{{{{ $labels.finding }}}}'
"""

FINDINGS = "- name: ullage-findings\n  rules:\n" + "".join(
    _FINDING.format(title=severity.title(), severity=severity, hold=hold)
    for severity, hold in (("info", "4m"), ("warning", "2m"), ("critical", "1m"))
)

GROUPS = (AGENT, FINDINGS)
