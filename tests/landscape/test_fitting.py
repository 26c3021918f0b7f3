"""Tables in narrow terminals: words and numbers stay whole, and the widest text gives way first."""

import pytest

from ressa.landscape.fitting import Column, fitting, longest, wrapped


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("map-lines-repaired-blip2", 10, ["map-lines-", "repaired-", "blip2"]),
        ("easy-vqa.balanced_accuracy", 20, ["easy-vqa.balanced_", "accuracy"]),
        ("Salesforce/blip2-opt-2.7b", 12, ["Salesforce/", "blip2-", "opt-2.7b"]),
        ("3,876,648,448 of 19661/49152", 13, ["3,876,648,448", "of", "19661/49152"]),
        ("not decided", 11, ["not decided"]),
        ("not decided", 7, ["not", "decided"]),
        ("-4.28 and 1e-05", 9, ["-4.28 and", "1e-05"]),
        ("", 3, [""]),
    ],
)
def test_text_is_wrapped_between_words_and_their_parts(
    text: str, width: int, lines: list[str]
) -> None:
    assert wrapped(text, width).split("\n") == lines
    assert wrapped(text, longest(text)).replace("\n", "").replace(" ", "") == text.replace(" ", "")


def test_headings_give_way_first_then_the_widest_text() -> None:
    columns = [
        Column("share_of_whole", ["0.354"], is_number=True),
        Column("name", ["a short one"], is_number=False),
        Column("modules", ["language_projection qformer query_tokens"], is_number=False),
    ]
    natural = [14, 11, 40]
    assert fitting(columns, sum(natural) + 4) == natural
    assert fitting(columns, sum(natural) - 4) == [6, 11, 40]
    assert fitting(columns, 46) == [6, 11, 25]
    assert fitting(columns, 25) == [6, 5, 10]
    assert fitting(columns, 24) is None
