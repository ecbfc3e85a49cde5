"""Runs one program in a cell under Landlock; did it run?: `python -m tests.hostile.lockdown`."""

import json
import os

from cipo_jax.verify import protocol
from cipo_jax.verify.protocol import ProgramLimits
from cipo_jax.verify.sandbox.host import Nursery
from cipo_jax.verify.sandbox.layers import Isolation

if __name__ == "__main__":
    nursery = Nursery("code")
    cell = nursery.cell(Isolation(level="landlock", landlock=True), scratch_bytes=2**20)
    orders = protocol.anonymous_file(b'{"source": "print(\'I ran\')"}')
    null, stdout = os.open("/dev/null", os.O_RDWR), protocol.anonymous_file()
    limits = ProgramLimits(wall_s=5.0, memory_bytes=2**29, output_bytes=2**20)
    end = cell.run("stdio", (null, stdout, null, orders, null), limits)
    nursery.close()
    print(json.dumps({"is_ready": end.is_ready, "printed": os.pread(stdout, 100, 0).decode()}))
