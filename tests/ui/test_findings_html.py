"""The doctor's findings on the page: a list in order of weight, marks on cards, nothing of a stranger's as markup."""

from pathlib import Path

from sdlora.data.findings import Finding
from sdlora.ui.caption_cards import NO_FINDINGS, card_id, findings_list


def test_findings_stand_under_what_they_ask_for_and_link_to_their_cards():
    found = [
        Finding("must", "unusable", "a.png is damaged.", (Path("a.png"),)),
        Finding("fine", "turned", "b.jpg is turned.", (Path("b.jpg"),)),
    ]
    page = findings_list(found, 2)
    assert page.index("To mend first") < page.index("a.png is damaged.") < page.index("Taken care of")
    assert f"href='#{card_id(Path('a.png'))}'" in page and "Could be better" not in page
    assert '[id="card-b.jpg"]::before{content:"turned"}' in page


def test_a_card_that_two_findings_concern_has_both_marks_once():
    twice = [Finding("could", mark, "x", (Path("a.png"),)) for mark in ("small", "alike", "small")]
    assert 'content:"small · alike"' in findings_list(twice, 1)


def test_no_name_or_caption_becomes_markup():
    name = "x\"]{}</style><script>'.png"
    page = findings_list([Finding("could", "small", f"{name} <b>", (Path(name),))], 1)
    assert "<script" not in page and "<b>" not in page and page.count("</style>") == 1


def test_nothing_found_is_said_and_nothing_at_all_of_no_pictures():
    assert NO_FINDINGS in findings_list([], 10)
    assert findings_list([], 0) == ""
