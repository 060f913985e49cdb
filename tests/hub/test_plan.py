"""What is used again of what was fetched, by whom and at which commit."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download

from diptych import reader
from diptych.engine import Engine
from diptych.errors import FileError, InputError
from diptych.hub import download as ours
from hub.repository import FILES, MMPROJ, NAME, TEXT, cache, contents
from hub.stand_in import Hub, Repo


def test_a_second_call_asks_no_network(hub: Hub, repo: Repo) -> None:
    found = ours.fetch(NAME)
    hub.asked.clear()
    assert found == ours.fetch(NAME) == ours.fetch(f"{NAME}:Q4_K_M") == ours.fetch(f"{NAME}:q4_k_m", offline=True)
    assert found == ours.fetch(NAME, revision=repo.commits[0][0])
    assert not hub.asked


def test_a_name_stays_at_its_commit_until_another_is_asked_for(hub: Hub, repo: Repo) -> None:
    old = ours.fetch(NAME)
    repo.commit({**FILES, "reader-Q4_K_M.gguf": b"new" * 1000})
    assert ours.fetch(NAME) == old
    new = ours.fetch(NAME, revision="main")
    assert contents(new) == (b"new" * 1000, MMPROJ)
    assert ours.fetch(NAME) == ours.fetch(NAME, revision="main", offline=True) == new, "the newest that is here"
    assert ours.fetch(NAME, revision=repo.commits[0][0]) == old
    assert [d.revision for d in ours.listed()] == [c for c, _ in repo.commits[::-1]]


def test_a_tag_and_an_older_commit_can_be_fetched(repo: Repo) -> None:
    first = repo.commits[0][0]
    repo.tags["v1.0"] = first
    repo.commit({"other-Q4_K_M.gguf": TEXT})
    assert ours.fetch(NAME, revision="v1.0").text.parent.name == first
    assert ours.fetch(NAME, revision="v1.0", offline=True).text.parent.name == first


def test_files_two_models_share_are_fetched_once(hub: Hub, repo: Repo) -> None:
    ours.fetch(NAME)
    sent = hub.sent
    ours.fetch(f"{NAME}:Q8_0")
    assert hub.sent - sent == len(TEXT)


def test_what_another_tool_fetched_is_used(hub: Hub, repo: Repo) -> None:
    theirs = hf_hub_download(NAME, "reader-Q4_K_M.gguf", cache_dir=cache())
    sent = hub.sent
    assert ours.fetch(NAME).text == Path(theirs)
    assert hub.sent - sent == len(MMPROJ)


def test_offline_what_another_tool_fetched_is_enough(hub: Hub, repo: Repo) -> None:
    for name in "reader-Q8_0.gguf", "mmproj-reader-Q8_0.gguf":
        hf_hub_download(NAME, name, cache_dir=cache())
    hub.asked.clear()
    assert contents(ours.fetch(NAME, offline=True)) == (TEXT[::-1], MMPROJ[::-1])
    assert not hub.asked
    assert not ours.listed(), "it was not Diptych that downloaded it"
    with pytest.raises(FileError, match=r"offline, in .*: me/reader-GGUF has no Q4_K_M; it has Q8_0"):
        ours.fetch(f"{NAME}:Q4_K_M", offline=True)


@pytest.mark.parametrize("variable", ["DIPTYCH_OFFLINE", "HF_HUB_OFFLINE", None])
def test_offline_and_not_there_is_told_without_asking(
    hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    if variable == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif variable:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(FileError, match=r"me/reader-GGUF:Q8_0 is not in .*, and this is offline; run it once without"):
        ours.fetch(f"{NAME}:Q8_0", offline=variable is None)
    assert not hub.asked


@pytest.mark.parametrize("loss", ["gone", "short"])
def test_a_file_that_was_lost_is_fetched_again_at_the_same_commit(repo: Repo, loss: str) -> None:
    found = ours.fetch(NAME)
    blob = found.text.resolve()
    if loss == "gone":
        blob.unlink()
    else:
        blob.write_bytes(TEXT[:100])
    repo.commit({"reader-Q4_K_M.gguf": b"other" * 1000})
    with pytest.raises(FileError, match="is not here whole, and this is offline"):
        ours.fetch(NAME, offline=True)
    assert ours.fetch(NAME) == found
    assert contents(found) == (TEXT, MMPROJ)


def test_another_home_of_the_hub_is_another_cache(hub: Hub, repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.fetch(NAME)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert ours.fetch(NAME).text.is_relative_to(tmp_path / "elsewhere")
    assert len(ours.listed()) == 2


def test_the_engine_takes_a_name_of_the_hub(hub: Hub) -> None:
    hub.repo(NAME, {"a-Q8_0.gguf": reader.FOLDER / "text.gguf", "mmproj.gguf": reader.FOLDER / "mmproj.gguf"})
    with Engine.load(hf=f"{NAME}:Q8_0") as engine:
        assert engine.ask("Read the text.", [reader.examples()[0]], max_tokens=4)
    with Engine.load(ours.fetch(NAME)) as engine:
        assert engine.ask("Read the text.", [reader.examples()[0]], max_tokens=4)
    for wrong in {"deployment": "reader", "hf": NAME}, {"model": Path("x"), "hf": NAME}:
        with pytest.raises(InputError, match="three ways"):
            Engine.load(**wrong)  # type: ignore[arg-type]
