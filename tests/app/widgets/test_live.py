"""The live box: the code of a text is that of the model and the dictionary, and it is read only when asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.widgets.artefacts import Unreadable
from app.widgets.live import TEXT_LENGTH, Fired, read_text
from interp.hooks import capture
from interp.models import load_model
from interp.sites import Site
from sae.model import load_sae
from tests.explorer_runs import Written, random_dictionary, write_runs

TEXT = "the cat sat on the mat <script>"
SITE = "resid_post.1"


@pytest.fixture(scope="module")
def real(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Runs whose dictionary can be loaded."""
    root = tmp_path_factory.mktemp("live") / "runs"
    return write_runs(root, model=str(model_folder), site=SITE, d_sae=64, d_in=32, save=random_dictionary)


def test_the_values_are_those_of_model_and_dictionary(real: Written, model_folder: Path) -> None:
    fired = read_text(real.sae, TEXT)
    model, sae = load_model(str(model_folder)), load_sae(real.sae)
    tokens = model.tokens(TEXT)
    with torch.no_grad(), capture(model, [Site.parse(SITE)], stop=True) as seen:
        model.forward(tokens)
        wanted = sae.encode(seen[Site.parse(SITE)][0, 1:]).dense()
    found = torch.tensor([[on.get(latent, 0.0) for latent in range(64)] for on in fired.active])
    torch.testing.assert_close(found, wanted)
    assert fired.ids == tokens[0, 1:].tolist()
    assert fired.start == 1  # the BOS is left out
    assert "".join(fired.tokens).strip() == TEXT
    assert not fired.cut


def test_the_strongest_token_and_the_order_of_the_active() -> None:
    fired = Fired(["a", "b", "c"], [1, 2, 3], 0, [{}, {7: 1.0, 3: -0.5}, {7: -2.0}], cut=False)
    assert fired.values(7) == [0.0, 1.0, -2.0]
    assert fired.strongest(7) == 2
    assert fired.strongest(5) is None


def test_the_active_come_strongest_first(real: Written) -> None:
    for on in read_text(real.sae, TEXT).active:
        sizes = [abs(value) for value in on.values()]
        assert sizes == sorted(sizes, reverse=True)
        assert all(sizes)


def test_a_long_text_is_cut(real: Written) -> None:
    fired = read_text(real.sae, "the cat " * TEXT_LENGTH)
    assert fired.cut
    assert len(fired.tokens) == 63  # the model's context of 64, less the BOS


def test_a_text_without_a_token_says_so(real: Written) -> None:
    with pytest.raises(Unreadable, match="type a few words"):
        read_text(real.sae, "")


def test_the_page_answers_when_it_is_asked(real: Written, open_page, text_of) -> None:
    fired = read_text(real.sae, TEXT)
    latent = next(iter(fired.active[3]))
    at = open_page(real.root, "feature", f=latent, text=TEXT)
    assert "ms-answer" not in text_of(at)
    next(button for button in at.button if button.label == "Run").click().run()
    page = text_of(at)
    assert not at.exception
    assert "ms-problem" not in page
    assert "Strongest:" in page
    assert "&lt;" in page[page.index("ms-answer") :]
    assert "<script" not in page
    strongest = fired.strongest(latent)
    assert strongest is not None
    others = [str(i) for i in fired.active[strongest] if i != latent][:6]
    links = [link.proto.label for link in at.get("page_link")]
    assert ",".join(others) in ",".join(links)
    at.button(key="go-Right").click().run()  # the next latent answers at once
    assert "ms-answer" in text_of(at)
