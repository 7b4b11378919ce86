"""The vocabulary of the reports."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from gap_bioimage.validation.checks import Check, Outcome, merge_outcomes, one_sentence, to_check


@given(text=st.text())
@example("x: \n.source")
@example("\x1b[2J\ud800")
@example("word " * 1000)
def test_a_check_says_what_it_has_to_on_one_printable_line(text: str) -> None:
    check = Check("archive.names", "archive", "failed", text, text)
    for told in (check.message, check.fix):
        assert told.isprintable()
        assert len(told.encode()) < 10_000
    assert Check("archive.names", "archive", "failed", check.message, check.fix) == check


def test_plain_sentences_are_left_as_they_are() -> None:
    message = "caf\u00e9.npy has 3 \u00b5m pixels, 2 were expected"
    assert Check("a.b", "archive", "failed", message).message == message


def test_the_worst_of_several_outcomes_is_told_with_all_their_texts() -> None:
    good, bad = Outcome("passed", "agrees"), Outcome("failed", "differs", "Export it again.")
    merged = merge_outcomes([("torchscript", good), ("onnx", bad), ("pytorch_state_dict", good)])
    assert (merged.status, merged.fix) == ("failed", "Export it again.")
    assert merged.message == "torchscript, pytorch_state_dict: agrees; onnx: differs"
    assert to_check("core.test", "core", merged).status == "failed"


def test_of_a_torchscript_error_the_last_line_counts() -> None:
    trace = "The following operation failed in the TorchScript interpreter.\nTraceback\nRuntimeError: too small"
    assert one_sentence(trace) == "RuntimeError: too small"
