"""What a check finds: in words, how bad it is, what to do about it, and what mends it without harm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from nas.errors import InputError, NasError

Verdict = Literal["ok", "note", "fault"]
MARKS = {"ok": "ok", "note": "note", "fault": "FAULT"}
NAME_WIDTH = 9  # of the longest name of a check


@dataclass(frozen=True)
class Repair:
    """What may be done about a finding without harm.

    Args:
        done: what will have been done then, in words: `2 files removed`.
        do: does it; may raise OSError or NasError.
    """

    done: str
    do: Callable[[], object]


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    Args:
        name: of what was looked at: `disk`, `store`.
        verdict: `ok`; `note`, which is worth knowing; `fault`, with which something does not work.
        seen: what was found; its first line says it all.
        cure: what to do about it; may have several lines.
        repair: what `--repair` does about it.
        repaired: whether that has been done.
        exit_code: of the command, if this is a fault.
    """

    name: str
    verdict: Verdict
    seen: str
    cure: str | None = None
    repair: Repair | None = None
    repaired: bool = False
    exit_code: int = InputError.exit_code

    @property
    def lines(self) -> list[str]:
        """As it is printed: the mark, the name and what was seen in columns, the rest indented below."""
        first, *more = self.seen.splitlines() or [""]
        more += self.cure.splitlines() if self.cure else []
        if self.repair is not None:
            more.append(f"{'repaired' if self.repaired else 'with --repair'}: {self.repair.done}")
        lines = [f"{MARKS[self.verdict]:<5}  {self.name:<{NAME_WIDTH}}  {first}", *(f"       {line.strip()}" for line in more)]
        # File names may hold what no terminal can print.
        return [line.encode("utf-8", "backslashreplace").decode("utf-8") for line in lines]


def guarded(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What a check finds; whatever it raises is a finding too."""
    try:
        yield from check()
    except NasError as error:
        yield Finding(name, "fault", error.message, error.hint, exit_code=error.exit_code)
    except Exception as error:  # one check that fails must not hide what the others see
        yield Finding(name, "fault", f"could not be checked: {type(error).__name__}: {error}")


def mended(finding: Finding) -> Finding:
    """The finding after its repair, if there is one; a fault where that does not succeed."""
    if finding.repair is None:
        return finding
    try:
        finding.repair.do()
    except Exception as error:
        return replace(finding, verdict="fault", cure=f"not repaired: {error}", repair=None)
    return replace(finding, verdict="ok", cure=None, repaired=True)


def conclusion(findings: Iterable[Finding]) -> tuple[str, int]:
    """The last sentence, and the exit code."""
    findings = list(findings)
    faults = [finding for finding in findings if finding.verdict == "fault"]
    counted = [
        f"{count} {word}{'s' * (count > 1)}"
        for word, count in (("fault", len(faults)), ("note", sum(finding.verdict == "note" for finding in findings)))
        if count
    ]
    repaired = sum(finding.repaired for finding in findings)
    open_repairs = sum(finding.repair is not None and not finding.repaired for finding in findings)
    said = " and ".join(counted) if counted else "nothing is wrong"
    said += f"; {repaired} repaired" if repaired else ""
    said += f"; --repair mends {open_repairs} of them" if open_repairs else ""
    return f"{said[0].upper()}{said[1:]}.", min((fault.exit_code for fault in faults), default=0)
