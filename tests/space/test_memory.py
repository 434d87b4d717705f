"""Attention on large maps: said with its memory, which grows as the attention weights of the paper's formula do."""

from pathlib import Path

import pytest

from nas.space.memory import attention_notes
from nas.space.reader import find_space, read_space


def notes(tmp_path: Path, choices: str, imgsz: int = 640) -> list[str]:
    path = tmp_path / "space.yaml"
    path.write_text(f"skeleton: yolo11n.yaml\nslots:\n  backbone.P2: {choices}\n  backbone.P5: {choices}\n", encoding="utf-8")
    return attention_notes(read_space(path), imgsz)


@pytest.mark.parametrize(
    ("choices", "gibibytes"),
    [
        ("{block: [keep, mobile_mqa], heads: [2, 8]}", 8 * 25_600**2 / 2**28),
        ("{block: mobile_mqa, heads: 8, mobile_mqa: {kv_stride: 2}}", 8 * 25_600**2 / 4 / 2**28),
        ("{block: mobile_mqa, heads: 8, mobile_mqa: {kv_stride: 2, q_stride: 2}}", 8 * 25_600**2 / 16 / 2**28),
        ("{block: mqa_elan}", 8 * 25_600**2 / 2**28),
        ("{block: irmb, heads: 8, irmb: {window: [7, 0]}}", 8 * 25_600**2 / 2**28),
        ("{block: irmb, heads: 8, irmb: {window: 64}}", 8 * 25_600 * 64**2 / 2**28),
    ],
)
def test_quadratic_attention_at_stride_4_is_said_with_its_memory(tmp_path: Path, choices: str, gibibytes: float) -> None:
    (note,) = notes(tmp_path, choices)  # and nothing of P5, 400 pixels
    assert note.startswith("backbone.P2: ")
    assert f"25,600 pixels at 640 px: up to {gibibytes:.1f} GiB" in note
    assert not notes(tmp_path, choices, 160)


def test_windows_and_linear_attention_are_no_trouble(tmp_path: Path) -> None:
    assert not notes(tmp_path, "{block: [keep, irmb, efficientvit, repvit, riformer]}", 1280)


def test_the_shipped_spaces_that_are_for_everybody_need_no_note() -> None:
    for name in ("demo", "yolo11n-blocks"):
        assert not attention_notes(read_space(find_space(name)), 640)
