"""Writes what lies in `dashboards/`: `python -m dashboards.generator`, or `make dashboards`.

From below: `thresholds` (every number that an alert or the colour of a panel goes by), `recordings` and `alerts`,
`rules` (the files of both), `panels` (how a panel is made), then one file a dashboard, and `__main__`, which writes
them all.
"""
