import sys
import tempfile
from pathlib import Path

from deit_fast.convert.own_format import FORMAT
from tests.checkpoint.stored import archive, write

if archive(FORMAT).exists():
    sys.exit(f"{archive(FORMAT)}: is there already")
with tempfile.TemporaryDirectory() as folder:
    write(Path(folder))
print(archive(FORMAT), archive(FORMAT).stat().st_size, "bytes")
