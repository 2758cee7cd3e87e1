"""Feature: the selector of a second model, and the feature in both."""

from __future__ import annotations

from tests.comparison_runs import Compared


def selector(at):
    return next(box for box in at.selectbox if box.label == "Compare with")


def test_the_comparisons_of_the_dictionary_are_offered_nulls_last(compared: Compared, open_page, text_of) -> None:
    at = open_page(compared.root, "feature", f=12)
    options = selector(at).options
    assert options[0] == "Compare with…"
    assert sorted(options[1:4]) == [f"with rtn {bits}-bit group 64" for bits in (3, 4, 8)]
    assert sorted(options[4:]) == ["with random prune 1.2% (null)", "with weight noise 0.012 (null)"]
    assert "In the second model" not in text_of(at)
    assert "vs" not in at.query_params


def test_a_second_model_is_in_the_address_and_shows_the_feature_in_both(compared: Compared, open_page, text_of) -> None:
    at = open_page(compared.root, "feature", f=12)
    selector(at).set_value(compared.four.name).run()
    text = text_of(at)
    row = compared.four.table("survival.latents.parquet", filters=[("latent", "==", 12)]).to_pylist()[0]
    assert not at.exception
    assert at.query_params["vs"] == compared.four.name
    assert f'<span class="ms-state {row["state"]}"' in text
    assert f"<dd>{row['r']:.3f}</dd>" in text
    assert text[text.index("ms-pairs") :].count('<div class="e"><div class="g" title="activation in') == 12
    selector(at).set_value("").run()
    assert "vs" not in at.query_params
    assert "ms-pairs" not in text_of(at)


def test_links_to_other_latents_keep_the_second_model(compared: Compared, open_page) -> None:
    at = open_page(compared.root, "feature", f=12, vs=compared.four.id)
    links = [link.proto for link in at.get("page_link") if link.proto.label.isdigit()]
    assert links
    assert all(f"vs={compared.four.name}" in link.query_string for link in links)


def test_an_address_that_names_no_comparison_is_left_out_with_a_note(compared: Compared, open_page, text_of) -> None:
    for vs in ("<script>", compared.bare.name, "x" * 500):
        at = open_page(compared.root, "feature", f=12, vs=vs)
        assert not at.exception
        assert "which is not a comparison of this dictionary; it is left out." in text_of(at)
        assert "<script>" not in text_of(at)


def test_a_latent_that_fires_in_neither_model_says_so(compared: Compared, open_page, text_of) -> None:
    at = open_page(compared.root, "feature", f=compared.written.dead, vs=compared.four.name)
    assert not at.exception
    assert "It fires in neither model on that text." in text_of(at)


def test_without_comparisons_there_is_no_selector(written, open_page) -> None:
    at = open_page(written.root, "feature", f=12)
    assert not [box for box in at.selectbox if box.label == "Compare with"]
