"""Changes to how a network is trained that save memory, one file each.

A file states its `KIND` ("exact", "rounded" or "another task") and offers what it changes:
`bench/ddpm/technique.py` lists the names. It imports nothing of `bench`.
"""
