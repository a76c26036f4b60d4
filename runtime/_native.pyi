"""The C kernels (``csrc/module.c``). Absent where the package was built without a compiler."""

from typing_extensions import Buffer

FIELDS: int

def levels() -> tuple[str, ...]: ...
def run(pool: Pool, *calls: Program | Buffer) -> None:
    """``run(pool, program, input, output, ...)``: up to four programs side by side."""

class Pool:
    def __new__(cls, threads: int) -> Pool: ...

class Program:
    bytes: int
    def __new__(
        cls,
        records: Buffer,
        slots: Buffer,
        blob: Buffer,
        input: int,
        output: int,
        result: int,
        isa: str | None,
    ) -> Program: ...
    def profile(self, pool: Pool, input: Buffer, output: Buffer, seconds: Buffer) -> None: ...
