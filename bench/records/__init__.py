"""The files of a run.

rows.py    the columns of every CSV, declared once
files.py   reading and writing CSV and JSON
folder.py  the run folder
"""
