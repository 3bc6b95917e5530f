"""python -m bench.data [PATH]: the contact sheet of the embedded brains, as in the docs."""

import sys
from pathlib import Path

from bench.data.contact_sheet import write_contact_sheet

path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/contact_sheet.png")
write_contact_sheet(path)
print(path)
