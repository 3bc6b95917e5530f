"""From the files of runs to tables, figures and a page. Reads files, never a live trial.

Evidence (`reading.py`)  what may be compared with what
  -> Grid (`table1.py`, `tables.py`, `claims.py`, `advice.py`)   -> CSV, Markdown, LaTeX
  -> Picture (`figures.py`, `timeline.py`, `learning.py`)        -> PNG, PDF
  -> both in one page (`page.py`)                                -> report.html

Two runs beside each other: `compare.py`, `compare_quality.py`. For other commands: `figure2.py`,
`scaling.py`. All of one report: `write.py`.
"""
