"""Runs mutmut in a working folder and writes down the outcome of every mutant.

mutmut leaves the text of f-strings alone, and nearly all our messages are f-strings; the operator
here changes them as mutmut changes plain strings.
"""

import json
import sys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import libcst as cst
from mutmut import __main__ as mutmut
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.mutators import mutation_operators
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files


def change_text(node: cst.FormattedString) -> Iterable[cst.FormattedString]:
    """Put X around each piece of text of an f-string, one piece a mutant."""
    for index, part in enumerate(node.parts):
        if isinstance(part, cst.FormattedStringText):
            changed = part.with_changes(value=f"XX{part.value}XX")
            yield node.with_changes(parts=[*node.parts[:index], changed, *node.parts[index + 1 :]])


def outcomes() -> dict[str, dict[str, str | int]]:
    """Return the outcome of each mutant, and the change where no test noticed it.

    Of those that were not tried, one entry a file says how many there are.
    """
    found: dict[str, dict[str, str | int]] = {}
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        for mutant, code in data.exit_code_by_key.items():
            outcome = status_by_exit_code[code]
            if code is None:
                rest = f"{mutant.rpartition('.')[0]}.others"
                known = found.setdefault(rest, {"outcome": outcome, "count": 0})
                known["count"] = int(known["count"]) + 1
                continue
            found[mutant] = {"outcome": outcome}
            if outcome not in ("killed", "timeout"):
                found[mutant]["diff"] = get_diff_for_mutant(mutant, path=path)
    return found


def forget_survivors() -> None:
    """Have every mutant tried again that no test noticed: there may be new tests."""
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        if data.exit_code_by_key:
            known = data.exit_code_by_key.items()
            data.exit_code_by_key = {mutant: code or None for mutant, code in known}
            data.save()


def draw(every: int) -> None:
    """Have only one mutant in so many tried, the same ones each time: their names decide."""
    collect = mutmut.collect_source_file_mutation_data

    def drawn(*, mutant_names: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
        mutants, data = collect(mutant_names=mutant_names)
        return [m for m in mutants if zlib.crc32(m[1].encode()) % every == 0], data

    mutmut.collect_source_file_mutation_data = drawn


def main() -> None:
    """Try what has not been noticed; also where that is stopped, what is known is kept."""
    draw(int(sys.argv[2]))
    mutation_operators.append((cst.FormattedString, change_text))
    forget_survivors()
    try:
        mutmut.cli(["run", "--max-children", "1"], standalone_mode=False)
    finally:
        text = json.dumps(outcomes(), indent=1, ensure_ascii=False)
        Path(sys.argv[1]).write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
